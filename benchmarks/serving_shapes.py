"""What ``benchmarks.serving`` runs: models that are a config and no weights, their engines, times.

vLLM makes weights up (``load_format="dummy"``), so a model is its ``config.json``. The architecture
of the built-in shapes is Mistral's, since vLLM gives that one a sliding window by the config alone:
the stock engine with the window and the one under the policy then differ in nothing else.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vllm_sink import policy

GIB = 2**30

#: Activations, CUDA graphs and the CUDA context of one engine: measured roughly, with room.
ENGINE_BYTES = 3 * GIB

#: Blocks that a stream may hold past ``max_blocks``, since a step in flight is not settled yet.
SLACK_BLOCKS = 2

#: Untimed steps at the start of a round. With asynchronous scheduling the first hands out tokens
#: that were ready before the round and finds the GPU idle; later ones follow each other.
LEAD = 3

LLAMA_3_8B = {
    "architectures": ["MistralForCausalLM"],
    "model_type": "mistral",
    "vocab_size": 128_256,
    "hidden_size": 4096,
    "intermediate_size": 14_336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "hidden_act": "silu",
    "max_position_embeddings": 131_072,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500_000.0,
    "tie_word_embeddings": False,
}

#: The paper's own for time and memory (Figure 10): as many KV heads as query heads.
LLAMA_2_13B = {
    "architectures": ["MistralForCausalLM"],
    "model_type": "mistral",
    "vocab_size": 32_000,
    "hidden_size": 5120,
    "intermediate_size": 13_824,
    "num_hidden_layers": 40,
    "num_attention_heads": 40,
    "num_key_value_heads": 40,
    "head_dim": 128,
    "hidden_act": "silu",
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10_000.0,
    "tie_word_embeddings": False,
}

SHAPES = {"llama-3-8b": LLAMA_3_8B, "llama-2-13b": LLAMA_2_13B}

#: Without these a config is not a decoder whose size this module can tell.
_NEEDED = (
    "architectures",
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "max_position_embeddings",
)


@dataclass(frozen=True)
class Shape:
    """A model without weights.

    Attributes:
        name: as the command line has it; of a folder, its last part.
        config: the fields of ``config.json``.
    """

    name: str
    config: dict[str, Any]

    @classmethod
    def read(cls, name: str) -> Shape:
        """A shape by its name, or the one of a model's folder.

        Raises:
            ValueError: there is no such shape, or it is not a decoder like Llama.
        """
        if name in SHAPES:
            return cls(name, dict(SHAPES[name]))
        path = Path(name) / "config.json"
        if not path.is_file():
            raise ValueError(f"{', '.join(SHAPES)}, or a folder with a config.json")
        config = json.loads(path.read_text())
        missing = [field for field in _NEEDED if field not in config]
        if missing:
            raise ValueError(f"a decoder like Llama; its config.json lacks {', '.join(missing)}")
        return cls(Path(name).resolve().name, config)

    def with_layers(self, layers: int) -> Shape:
        """The same with fewer or more layers."""
        # A list of layer kinds would no longer fit; the shapes that are run have one kind.
        config = {k: v for k, v in self.config.items() if k != "layer_types"}
        return replace(self, config=config | {"num_hidden_layers": layers})

    def with_context(self, tokens: int) -> Shape:
        """The same, able to run to so many tokens: made-up weights have learned no positions."""
        return replace(self, config=self.config | {"max_position_embeddings": tokens})

    @property
    def layers(self) -> int:
        return int(self.config["num_hidden_layers"])

    @property
    def vocabulary(self) -> int:
        return int(self.config["vocab_size"])

    @property
    def native_context(self) -> int:
        return int(self.config["max_position_embeddings"])

    @property
    def heads(self) -> tuple[int, int, int]:
        """Query heads, KV heads, head size."""
        queries = int(self.config["num_attention_heads"])
        size = self.config.get("head_dim") or self.config["hidden_size"] // queries
        return queries, int(self.config.get("num_key_value_heads") or queries), int(size)

    def weight_bytes(self, itemsize: int) -> int:
        """Bytes of the weights, norms left out."""
        queries, keys, size = self.heads
        hidden = self.config["hidden_size"]
        attention = hidden * size * (2 * queries + 2 * keys)
        layer = attention + 3 * hidden * self.config["intermediate_size"]
        tables = 1 if self.config.get("tie_word_embeddings") else 2
        return itemsize * (self.layers * layer + tables * self.vocabulary * hidden)

    def block_bytes(self, block_size: int, itemsize: int) -> int:
        """Bytes of one KV block over all layers."""
        _, keys, size = self.heads
        return 2 * self.layers * keys * size * block_size * itemsize

    def write(self, folder: Path, sliding_window: int | None) -> Path:
        """Write ``config.json`` into a folder of its own below ``folder``."""
        path = folder / f"{self.name}-{sliding_window or 'full'}"
        path.mkdir()
        config = self.config | {"sliding_window": sliding_window}
        (path / "config.json").write_text(json.dumps(config, indent=1))
        return path


@dataclass(frozen=True)
class Sizes:
    """What fixes how many blocks streams need: the same numbers for every engine of a run.

    Attributes:
        sink_tokens, window_tokens: S and W.
        block_size: tokens of a KV block.
        chunk: most tokens of a step (``max_num_batched_tokens``).
        max_model_len: longest stream.
    """

    sink_tokens: int
    window_tokens: int
    block_size: int
    chunk: int
    max_model_len: int

    def sink_blocks(self, in_flight_tokens: int, total_tokens: int) -> int:
        """The most blocks that a stream under the policy holds."""
        return policy.max_blocks(
            self.sink_tokens, self.window_tokens, in_flight_tokens, total_tokens, self.block_size
        )

    @property
    def decoding(self) -> int:
        """Blocks of a stream that decodes, its window long full."""
        return self.sink_blocks(1, self.max_model_len)

    @property
    def prefilling(self) -> int:
        """Blocks of a stream with two whole steps in flight, as asynchronous scheduling has."""
        return self.sink_blocks(2 * self.chunk, self.max_model_len)

    def window_pool(self, streams: int, prompt_tokens: int) -> int:
        """Blocks for so many streams with a window, which come in one after another.

        All but the last decode. vLLM starts only if one stream of any length fits, and keeps one
        block for itself.
        """
        incoming = self.sink_blocks(min(2 * self.chunk, prompt_tokens), self.max_model_len)
        streaming = (streams - 1) * (self.decoding + SLACK_BLOCKS) + incoming
        return max(streaming, self.prefilling) + 16

    def full_pool(self, tokens: int) -> int:
        """Blocks for so many tokens that are all kept, and for one stream of any length."""
        most = max(tokens, self.max_model_len)
        return policy.cdiv(most, self.block_size) + 16

    def streams_that_fit(self, pool_bytes: int, block_bytes: int, context: int) -> dict[str, int]:
        """How many streams of a length fit into a pool: everything kept, and under the policy.

        Under the policy all decode, and there is room left for one of them to have come in last.
        """
        blocks = pool_bytes // block_bytes - 1  # vLLM keeps the null block
        decoding = self.sink_blocks(1, context)
        incoming = self.sink_blocks(2 * self.chunk, context)
        return {
            "full": max(0, blocks // policy.cdiv(context, self.block_size)),
            "sink": max(0, (blocks - (incoming - decoding)) // decoding),
        }


def require_memory(
    shape: Shape, pools: list[int], block_size: int, itemsize: int, free: int
) -> None:
    """See that engines with pools of so many blocks fit, before minutes go into starting them.

    Raises:
        ValueError: naming what is needed and how many layers would fit.
    """

    def need(layers: int) -> int:
        cut = shape.with_layers(layers)
        weights = len(pools) * (cut.weight_bytes(itemsize) + ENGINE_BYTES)
        return weights + sum(pools) * cut.block_bytes(block_size, itemsize)

    if need(shape.layers) <= free:
        return
    fits = max((n for n in range(1, shape.layers) if need(n) <= free), default=0)
    raise ValueError(
        f"{f'at most {fits}' if fits else 'none on this GPU; take a smaller --batch'}: "
        f"{len(pools)} engines need {need(shape.layers) / GIB:.1f} GiB and "
        f"{free / GIB:.1f} GiB are free"
    )


class Side:
    """One engine, stepped by hand."""

    def __init__(self, llm: Any, seed: int) -> None:
        import numpy

        self.engine = llm.llm_engine
        self.core = self.engine.engine_core.engine_core
        self.config = self.engine.vllm_config
        self.random = numpy.random.default_rng(seed)
        self.live: list[str] = []
        self.added = 0
        self.most_blocks = 0
        self.schedule = self.core.scheduler.schedule
        self.core.scheduler.schedule = self._schedule

    def _schedule(self, *args: Any, **kwargs: Any) -> Any:
        """vLLM's own, and how many KV blocks are held once a step is planned."""
        planned = self.schedule(*args, **kwargs)
        pool = self.core.scheduler.kv_cache_manager.block_pool
        held = pool.num_gpu_blocks - 1 - pool.get_num_free_blocks()
        self.most_blocks = max(self.most_blocks, held)
        return planned

    def prompt(self, tokens: int) -> list[int]:
        """Random tokens: no two prompts share a prefix."""
        vocabulary = self.config.model_config.get_vocab_size()
        return self.random.integers(0, vocabulary, tokens).tolist()

    def first(self, prompt: list[int], most: int) -> Any:
        """Let a stream in and step until its first token; the others go on meanwhile."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        params = SamplingParams(
            max_tokens=most,
            temperature=0.0,
            ignore_eos=True,
            detokenize=False,
            output_kind=RequestOutputKind.DELTA,
        )
        self.added += 1
        name = str(self.added)
        self.engine.add_request(name, {"prompt_token_ids": prompt}, params)
        self.live.append(name)
        while self.engine.has_unfinished_requests():
            for output in self.engine.step():
                if output.request_id == name:
                    return output
        raise RuntimeError(f"request {name} ended without a token")

    def shrink(self, count: int) -> None:
        """End all streams but the first ones."""
        self.engine.abort_request(self.live[count:])
        del self.live[count:]
        if not count:
            self._drain()

    def _drain(self) -> None:
        """What was in flight belongs to the streams that are gone as well."""
        while self.core.batch_queue or self.core.scheduler.has_requests():
            self.engine.step()

    def decode(self, steps: int) -> float:
        """Seconds of a step in which every live stream gets one token."""
        synchronize()
        for _ in range(LEAD):
            self.engine.step()
        begin = time.perf_counter()
        produced = [self.engine.step() for _ in range(steps)]
        seconds = time.perf_counter() - begin
        synchronize()
        for outputs in produced:
            told = [len(o.outputs[0].token_ids) for o in outputs if not o.finished]
            if told != [1] * len(self.live):
                raise RuntimeError(f"{len(self.live)} streams, but a step gave {told} tokens")
        return seconds / steps

    def first_token(self, tokens: int) -> float:
        """Seconds to the only token of a new prompt, on an idle engine."""
        prompt = self.prompt(tokens)
        synchronize()
        begin = time.perf_counter()
        output = self.first(prompt, 1)
        seconds = time.perf_counter() - begin
        if output.num_cached_tokens:
            raise RuntimeError(f"{output.num_cached_tokens} tokens of the prompt were cached")
        self.shrink(0)
        return seconds

    def prefill(self, streams: int, tokens: int) -> float:
        """Seconds until each of ``streams`` new prompts has its only token."""
        from vllm import SamplingParams

        params = SamplingParams(max_tokens=1, temperature=0.0, ignore_eos=True, detokenize=False)
        prompts = [self.prompt(tokens) for _ in range(streams)]
        synchronize()
        begin = time.perf_counter()
        for prompt in prompts:
            self.added += 1
            self.engine.add_request(str(self.added), {"prompt_token_ids": prompt}, params)
        finished = 0
        while self.engine.has_unfinished_requests():
            finished += sum(output.finished for output in self.engine.step())
        seconds = time.perf_counter() - begin
        if finished != streams:
            raise RuntimeError(f"{finished} of {streams} prompts had their token")
        self._drain()
        return seconds

    def attention(self) -> list[Any]:
        """The model's attention layers."""
        layers = self.config.compilation_config.static_forward_context.values()
        return [layer for layer in layers if hasattr(layer, "sliding_window")]

    def block_bytes(self) -> int:
        """Bytes of one KV block over all layers."""
        groups = self.core.scheduler.kv_cache_config.kv_cache_groups
        return sum(g.kv_cache_spec.page_size_bytes * len(g.layer_names) for g in groups)

    def settings(self) -> dict[str, Any]:
        """What this engine came to run with."""
        config = self.config
        layer = self.attention()[0]
        return {
            "kv_policy": config.additional_config.get("kv_policy"),
            "attention_backend": layer.get_attn_backend().get_name(),
            "sliding_window": layer.sliding_window,
            "cudagraph_mode": config.compilation_config.cudagraph_mode.name,
            "cudagraph_capture_sizes": config.compilation_config.cudagraph_capture_sizes,
            "num_gpu_blocks": config.cache_config.num_gpu_blocks,
            "block_bytes": self.block_bytes(),
            **self.shared_settings(),
        }

    def shared_settings(self) -> dict[str, Any]:
        """What both sides must have alike for their times to be compared."""
        config = self.config
        return {
            "v2_model_runner": config.use_v2_model_runner,
            "async_scheduling": bool(config.scheduler_config.async_scheduling),
            "batch_queue": self.core.batch_queue_size,
            "compilation": config.compilation_config.mode.name,
            "block_size": self.core.scheduler.block_size,
            "max_num_batched_tokens": config.scheduler_config.max_num_batched_tokens,
            "max_num_seqs": config.scheduler_config.max_num_seqs,
            "max_model_len": config.model_config.max_model_len,
            "prefix_caching": config.cache_config.enable_prefix_caching,
            "dtype": str(config.model_config.dtype).removeprefix("torch."),
        }


def synchronize() -> None:
    """Wait for the GPU, if there is one."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


class Clock:
    """How long the phases of a run took."""

    def __init__(self) -> None:
        self.phases: dict[str, float] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        begin = time.perf_counter()
        yield
        self.phases[name] = round(time.perf_counter() - begin, 2)
        print(f"[{name}: {self.phases[name]:.1f} s]", flush=True)


def summary(values: list[float], tokens: int) -> dict[str, Any]:
    """Milliseconds of the rounds; ``tokens``: that are done in that time."""
    first, median, third = statistics.quantiles(values, n=4, method="inclusive")
    return {
        "median_ms": median,
        "min_ms": min(values),
        "quartile1_ms": first,
        "quartile3_ms": third,
        "max_ms": max(values),
        "tokens_per_second": 1000 * tokens / median,
        "rounds_ms": values,
    }
