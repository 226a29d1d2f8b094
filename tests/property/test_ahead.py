"""Rollovers under asynchronous scheduling, for the V2 runner, without a GPU.

vLLM's real ``AsyncScheduler`` with streams, one step ahead of a shadow of the runner. The shadow
keeps what the V2 runner keeps (tokens, blocks, base of each row), changes it as the messages say,
and holds it against the scheduler's; it writes the identity of each key into its slot and looks
whether every token finds all that it may see there, and nothing else.
"""

from __future__ import annotations

from collections import deque
from pathlib import Path
from random import Random
from typing import Any

import pytest
from vllm.engine.arg_utils import EngineArgs
from vllm.sampling_params import SamplingParams
from vllm.v1.kv_cache_interface import KVCacheConfig, KVCacheGroupSpec
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.request import Request, RequestStatus
from vllm.v1.structured_output import StructuredOutputManager

from tests.e2e.engines import tiny
from tests.property.driver import visible
from vllm_sink.cache.spec import SinkWindowSpec
from vllm_sink.engine.scheduler import SinkAsyncScheduler, SinkScheduler
from vllm_sink.plugin import register
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
    """Executes what the scheduler says, and sees whether it can."""

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


def _scheduler(folder: Path, ahead: bool) -> Any:
    register()
    policy = {"sink_tokens": SINKS, "window_tokens": WINDOW, "segment_tokens": SEGMENT}
    config = EngineArgs(
        model=str(folder),
        block_size=BLOCK,
        max_num_batched_tokens=CHUNK,
        max_num_seqs=6,
        enable_prefix_caching=False,
        additional_config={"kv_policy": {"name": "sink", **policy}},
    ).create_engine_config()
    config.scheduler_config.async_scheduling = ahead
    config.cache_config.num_gpu_blocks = POOL
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
        kv_cache_config=KVCacheConfig(POOL, [], [KVCacheGroupSpec(["layer"], spec)]),
        structured_output_manager=StructuredOutputManager(config),
        block_size=BLOCK,
    )
    made.use_v2_model_runner = True
    return made


@pytest.mark.parametrize("ahead", [True, False])
@pytest.mark.parametrize("seed", range(4))
def test_a_step_ahead(seed: int, ahead: bool, tiny_folder: Path) -> None:
    rng = Random(seed)
    scheduler = _scheduler(tiny("llama-gqa", tiny_folder), ahead)
    runner, queue = ShadowRunner(rng), deque[Any]()
    free = scheduler.kv_cache_manager.block_pool.get_num_free_blocks
    total, wanted, said = free(), dict[str, int](), dict[str, int]()
    steps = aborted = 0
    while steps < 1500 or scheduler.has_unfinished_requests() or queue:
        steps += 1
        assert steps < 20_000, "the scheduler does not come to rest"
        if steps < 1500 and len(scheduler.requests) < 5 and rng.random() < 0.3:
            name, count = f"r{steps}", rng.choice([1, 5, 60, 400])
            prompt = [rng.randrange(256) for _ in range(rng.choice([1, 30, 64, 65, 71, 72, 300]))]
            scheduler.add_request(
                Request(name, prompt, SamplingParams(max_tokens=count, ignore_eos=True), None)
            )
            wanted[name], said[name] = count, 0
        if rng.random() < 0.003 and scheduler.requests:
            name = rng.choice(sorted(scheduler.requests))
            scheduler.finish_requests(name, RequestStatus.FINISHED_ABORTED)
            del wanted[name]
            aborted += 1
        if rng.random() < 0.002:
            scheduler.reset_prefix_cache(reset_running_requests=True)
        if scheduler.has_requests():
            output = scheduler.schedule()
            queue.append((output, runner.step(output)))
        if len(queue) > ahead or (queue and not scheduler.has_requests()):
            for outputs in scheduler.update_from_output(*queue.popleft()).values():
                for one in outputs.outputs:
                    said[one.request_id] += len(one.new_token_ids)
    assert {name: said[name] for name in wanted} == wanted
    assert free() == total
    assert not scheduler.manager.streams
    assert not scheduler._rests
    assert runner.rolled > 100
    assert scheduler.rollovers >= runner.rolled
    assert aborted
    assert 400 in wanted.values()
    assert scheduler.restarts
