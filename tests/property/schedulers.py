"""vLLM's real schedulers with streams, and a shadow of the runner that executes their output.

The shadow keeps what the V2 runner keeps (tokens, blocks, base of each row), changes it as the
messages say, and compares it with the scheduler's; it writes the identity of each key into its slot
and checks that every token finds all that it may see there, and nothing else.
"""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import Any

from vllm.engine.arg_utils import EngineArgs
from vllm.sampling_params import SamplingParams
from vllm.v1.kv_cache_interface import KVCacheConfig, KVCacheGroupSpec
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.request import Request
from vllm.v1.structured_output import StructuredOutputManager

from tests.property.driver import visible
from vllm_sink.cache.spec import SinkWindowSpec
from vllm_sink.engine.scheduler import SinkAsyncScheduler, SinkScheduler
from vllm_sink.plugin import register
from vllm_sink.requests.core_request import ServerFields, set_server_fields
from vllm_sink.segments import rollovers_of

SINKS, WINDOW, BLOCK, SEGMENT, CHUNK, POOL = 5, 20, 8, 72, 32, 48


class Row:
    """What the runner keeps of one request."""

    def __init__(self, new: Any, base: int, epoch: int) -> None:
        self.tokens: list[int] = list(new.prefill_token_ids)
        self.blocks: list[int] = list(new.block_ids[0])
        self.computed: int = new.num_computed_tokens
        self.base = base
        self.epoch = epoch
        self.sampled: list[int] = []

    def true_index(self, i: int) -> int:
        """The sinks' blocks never move; what follows has been raised by the base."""
        return i if i < -(-SINKS // BLOCK) * BLOCK else self.base + i


class ShadowRunner:
    """Executes the scheduler's output, and checks that it can."""

    def __init__(self, rng: Random) -> None:
        self.rng = rng
        self.rows: dict[str, Row] = {}
        self.slots: dict[tuple[int, int], tuple[str, int, int]] = {}
        self.rolled = 0
        self.epoch = 0

    def step(self, output: Any) -> ModelRunnerOutput:
        for name in {*output.finished_req_ids, *(output.preempted_req_ids or ())}:
            self.rows.pop(name, None)
        told = rollovers_of(output)
        for one in told.rolled:
            if one.request_id in self.rows:
                self._roll(one)
        for new in output.scheduled_new_reqs:
            self.epoch += 1
            self.rows[new.req_id] = Row(new, told.bases.get(new.req_id, 0), self.epoch)
        cached = output.scheduled_cached_reqs
        for name, computed, blocks in zip(
            cached.req_ids, cached.num_computed_tokens, cached.new_block_ids, strict=True
        ):
            self.rows[name].computed = computed
            self.rows[name].blocks += [] if blocks is None else blocks[0]
        names = list(output.num_scheduled_tokens)
        sampled = [self._run(n, output.num_scheduled_tokens[n]) for n in names]
        return ModelRunnerOutput(names, {n: i for i, n in enumerate(names)}, sampled)

    def _roll(self, one: Any) -> None:
        row = self.rows[one.request_id]
        a, b = one.cut
        del row.tokens[a:b]
        del row.blocks[a // BLOCK : b // BLOCK]
        row.tokens += one.fed
        row.base += b - a
        assert (row.tokens, row.blocks, row.base) == (one.tokens, one.block_ids, one.base)
        self.rolled += 1

    def _run(self, name: str, count: int) -> list[int]:
        row = self.rows[name]
        indices = range(row.computed, row.computed + count)
        assert indices.stop <= len(row.tokens) <= SEGMENT
        for i in indices:
            self.slots[row.blocks[i // BLOCK], i % BLOCK] = (name, row.epoch, row.true_index(i))
        for i in indices:
            for j in visible(i, SINKS, WINDOW):
                key = self.slots[row.blocks[j // BLOCK], j % BLOCK]
                assert key == (name, row.epoch, row.true_index(j))
        if indices.stop < len(row.tokens):
            return []
        row.tokens.append(self.rng.randrange(256))
        row.sampled.append(row.tokens[-1])
        return [row.tokens[-1]]


def make_scheduler(
    folder: Path,
    ahead: bool,
    pool: int = POOL,
    admission: dict[str, Any] | None = None,
    **settings: Any,
) -> Any:
    """A scheduler of an engine with ``pool`` blocks, the null block among them."""
    register()
    policy = {"sink_tokens": SINKS, "window_tokens": WINDOW, "segment_tokens": SEGMENT}
    config = EngineArgs(
        model=str(folder),
        block_size=BLOCK,
        max_num_batched_tokens=CHUNK,
        **{"max_num_seqs": 6, **settings},
        enable_prefix_caching=False,
        additional_config={
            "kv_policy": {"name": "sink", **policy},
            "sink_admission": admission or {},
        },
    ).create_engine_config()
    config.scheduler_config.async_scheduling = ahead
    config.cache_config.num_gpu_blocks = pool
    spec = SinkWindowSpec(
        block_size=BLOCK,
        num_kv_heads=1,
        head_size=32,
        dtype=config.model_config.dtype,
        sink_tokens=SINKS,
        window_tokens=WINDOW,
    )
    made = (SinkAsyncScheduler if ahead else SinkScheduler)(
        vllm_config=config,
        kv_cache_config=KVCacheConfig(pool, [], [KVCacheGroupSpec(["layer"], spec)]),
        structured_output_manager=StructuredOutputManager(config),
        block_size=BLOCK,
    )
    made.use_v2_model_runner = True
    return made


def make_request(
    name: str, prompt: list[int], count: int, arrival: float = 0.0, **told: Any
) -> Request:
    """A request as the engine core has it: a stream, if it can outgrow its segment."""
    request = Request(
        name,
        prompt,
        SamplingParams(max_tokens=count, ignore_eos=True),
        None,
        arrival_time=arrival,
    )
    told.setdefault("stream", len(prompt) + count > SEGMENT - BLOCK)
    set_server_fields(request, ServerFields(**told))
    return request
