"""Real engines on a GPU: vLLM's V2 runner, asynchronous scheduling, CUDA graphs, S per request."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.engines import (
    assert_equal_the_reference,
    engine,
    greedy,
    logprobs,
    prompt,
    random_tokens,
    reference_logprobs,
    tiny,
)
from tests.models.factory import make_tiny

pytestmark = pytest.mark.gpu

SINKS = (0, 1, 5, 20)
#: A named pool: nothing is measured, so tests may share a GPU.
ROOM: dict[str, Any] = {
    "kv_cache_memory_bytes": 64 << 20,
    "gpu_memory_utilization": 0.05,
    "max_num_seqs": 16,
}
#: vLLM's defaults, small: torch.compile, whole decode steps in CUDA graphs.
COMPILED: dict[str, Any] = {**ROOM, "enforce_eager": False, "max_num_batched_tokens": 512}
needs_xformers = pytest.mark.skipif(find_spec("xformers") is None, reason="no xformers")
EVERY = ["flash", "triton", "auto", pytest.param("xformers", marks=needs_xformers), "torch"]


@pytest.mark.parametrize("attention", ["triton", "torch"])
@pytest.mark.parametrize("window", [30, 7])
@pytest.mark.parametrize(
    "arch", ["llama-gqa", "llama-yarn", "falcon-alibi", "gpt-neox", "gemma3", "gemma2"]
)
def test_logprobs_equal_the_reference(
    arch: str, window: int, attention: str, tiny_folder: Path
) -> None:
    folder = tiny(arch, tiny_folder)
    tokens = random_tokens(6 * (max(SINKS) + window))
    with engine(folder, window, attention=attention, **ROOM) as llm:
        assert llm.llm_engine.vllm_config.use_v2_model_runner
        outputs = llm.generate(
            [prompt(tokens)] * len(SINKS),
            [greedy(40, s, prompt_logprobs=0) for s in SINKS],
            use_tqdm=False,
        )
    # Matrix products in float32 on a GPU round otherwise than on a CPU.
    assert_equal_the_reference(outputs, folder, SINKS, window, bound=1e-3)


def test_compiled_with_cuda_graphs(tiny_folder: Path) -> None:
    """Streams that grow through their window, in graphs, equal the reference."""
    folder = tiny("llama-gqa", tiny_folder)
    tokens = random_tokens(200)
    with engine(folder, 40, 5, **ROOM, max_num_batched_tokens=512) as llm:
        (eager,) = llm.generate(prompt(tokens), greedy(100, prompt_logprobs=0), use_tqdm=False)
    with engine(folder, 40, 5, **COMPILED) as llm:
        config = llm.llm_engine.vllm_config
        assert config.scheduler_config.async_scheduling
        assert config.compilation_config.cudagraph_mode.has_full_cudagraphs()
        (compiled,) = llm.generate(prompt(tokens), greedy(100, prompt_logprobs=0), use_tqdm=False)
        # From a prompt below the window, so that the sinks leave the window inside a graph.
        short = llm.generate(
            [prompt(tokens[:24])] * len(SINKS),
            [greedy(120, s, prompt_logprobs=0) for s in SINKS],
            use_tqdm=False,
        )
    assert compiled.outputs[0].token_ids == eager.outputs[0].token_ids
    every = [*tokens, *compiled.outputs[0].token_ids]
    difference = (logprobs(compiled) - reference_logprobs(folder, 5, 40, every)).abs()
    assert difference.max() < 1e-3
    assert_equal_the_reference(short, folder, SINKS, 40, bound=1e-3)


@pytest.mark.parametrize("attention", ["auto", "triton", "torch"])
def test_windows_of_requests(attention: str, tiny_folder: Path) -> None:
    """In one batch, in CUDA graphs, each grows through its own window."""
    folder = tiny("llama-gqa", tiny_folder)
    kept = [(sinks, window) for sinks in (0, 4, 20) for window in (1, 7, 30, 60)]
    with engine(folder, 60, 4, attention, **COMPILED) as llm:
        outputs = llm.generate(
            [prompt(random_tokens(50 + 9 * i, seed=i)) for i in range(len(kept))],
            [greedy(90, *one, prompt_logprobs=0) for one in kept],
            use_tqdm=False,
        )
    for (sinks, window), output in zip(kept, outputs, strict=True):
        assert_equal_the_reference([output], folder, [sinks], window, bound=1e-3)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("attention", EVERY)
def test_half_precision(attention: str, dtype: str, tiny_folder: Path) -> None:
    """Prompts of several lengths and S, prefilled in chunks beside streams that decode."""
    folder = tiny("llama-gqa", tiny_folder)
    prompts = [random_tokens(n, seed=n) for n in (5, 70, 333, 600, 1, 40, 41, 64)]
    sinks = (4, 0, 20, 33, 1, 1, 4, 60)
    settings = {**COMPILED, "dtype": dtype, "max_num_batched_tokens": 128}
    with engine(folder, 40, 5, attention, **settings) as llm:
        outputs = llm.generate(
            [prompt(p) for p in prompts],
            [greedy(90, s, prompt_logprobs=0) for s in sinks],
            use_tqdm=False,
        )
        (again,) = llm.generate(prompt(prompts[3]), greedy(30, sinks[3]), use_tqdm=False)
    assert again.num_cached_tokens
    # Mostly the rounding of the model and its weights; it grows with the logits.
    largest, mean = {"bfloat16": (0.3, 0.04), "float16": (0.05, 0.005)}[dtype]
    for s, output in zip(sinks, outputs, strict=True):
        every = [*output.prompt_token_ids, *output.outputs[0].token_ids]
        difference = (logprobs(output) - reference_logprobs(folder, s, 40, every)).abs()
        assert difference.max() < largest, f"S {s}: {difference.max():.3f}"
        assert difference.mean() < mean, f"S {s}: mean {difference.mean():.4f}"


def test_large_pinned_spans(tiny_folder: Path) -> None:
    """A thousand and more sink tokens, in graphs."""
    folder = make_tiny("llama-gqa", tiny_folder / "long", max_position_embeddings=4096)
    tokens = random_tokens(2500)
    sinks = (1000, 2000, 3)
    with engine(folder, 400, 4, **COMPILED, max_model_len=4096) as llm:
        outputs = llm.generate(
            [prompt(tokens)] * len(sinks),
            [greedy(24, s, prompt_logprobs=0) for s in sinks],
            use_tqdm=False,
        )
    assert_equal_the_reference(outputs, folder, sinks, 400, bound=1e-3)


def compiled() -> dict[str, int]:
    """What this process has compiled and captured so far."""
    from vllm.compilation.counter import compilation_counter

    from vllm_sink.attention.kernels.compact_tables import compact_tables
    from vllm_sink.attention.kernels.fused import sink_attention

    counts = {k: v for k, v in vars(compilation_counter).items() if isinstance(v, int)}
    for kernel in (sink_attention, compact_tables):
        counts[kernel.__name__] = sum(len(of[0]) for of in kernel.device_caches.values())
    return counts


@pytest.mark.parametrize("attention", ["flash", "triton", "auto"])
def test_nothing_is_compiled_once_the_server_is_up(attention: str, tiny_folder: Path) -> None:
    """Streams grow through the staircase and far past it, batches change their size and mix."""
    folder = tiny("llama-gqa", tiny_folder)
    with engine(folder, 40, 5, attention, **{**COMPILED, "dtype": "bfloat16"}) as llm:
        before = compiled()
        for count in (1, 2, 3, 7, 16):
            prompts = [prompt(random_tokens(5 + 67 * i, seed=i)) for i in range(count)]
            params = [greedy(20 + 31 * i, min(5 + 3 * i, 30) % 6) for i in range(count)]
            llm.generate(prompts, params, use_tqdm=False)
        assert compiled() == before
        assert before["sink_attention"] > 1
