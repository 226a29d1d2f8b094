"""The ``torch`` provider on a GPU: vLLM's V2 runner, asynchronous scheduling, S per request."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

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

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU on this machine"),
]

SINKS = (0, 1, 5, 20)


@pytest.mark.parametrize("window", [30, 7])
@pytest.mark.parametrize("arch", ["llama-gqa", "llama-yarn", "falcon-alibi", "gpt-neox", "gemma3"])
def test_logprobs_equal_the_reference(arch: str, window: int, tiny_folder: Path) -> None:
    folder = tiny(arch, tiny_folder)
    tokens = random_tokens(6 * (max(SINKS) + window))
    with engine(folder, window, gpu_memory_utilization=0.3) as llm:
        assert llm.llm_engine.vllm_config.use_v2_model_runner
        outputs = llm.generate(
            [prompt(tokens)] * len(SINKS),
            [greedy(40, s, prompt_logprobs=0) for s in SINKS],
            use_tqdm=False,
        )
    # Matrix products in float32 on a GPU round otherwise than on a CPU.
    assert_equal_the_reference(outputs, folder, SINKS, window, bound=1e-3)


def test_compiled_with_cuda_graphs(tiny_folder: Path) -> None:
    """vLLM's defaults: torch.compile, piecewise CUDA graphs, asynchronous scheduling."""
    folder = tiny("llama-gqa", tiny_folder)
    tokens = random_tokens(200)
    settings = {"gpu_memory_utilization": 0.3, "max_num_batched_tokens": 512}
    with engine(folder, 40, 5, **settings) as llm:
        (eager,) = llm.generate(prompt(tokens), greedy(100, prompt_logprobs=0), use_tqdm=False)
    with engine(folder, 40, 5, enforce_eager=False, **settings) as llm:
        assert llm.llm_engine.vllm_config.scheduler_config.async_scheduling
        (compiled,) = llm.generate(prompt(tokens), greedy(100, prompt_logprobs=0), use_tqdm=False)
    assert compiled.outputs[0].token_ids == eager.outputs[0].token_ids
    every = [*tokens, *compiled.outputs[0].token_ids]
    difference = (logprobs(compiled) - reference_logprobs(folder, 5, 40, every)).abs()
    assert difference.max() < 1e-3
