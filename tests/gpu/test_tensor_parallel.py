"""Two GPUs give the output of one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.e2e.engines import (
    assert_equal_the_reference,
    engine,
    greedy,
    prompt,
    random_tokens,
    tiny,
)

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="fewer than two NVIDIA GPUs"),
]

SINKS = (0, 4, 20)


@pytest.mark.parametrize("eager", [True, False], ids=["eager", "graphs"])
def test_same_tokens_and_the_references_log_probabilities(eager: bool, tiny_folder: Path) -> None:
    folder = tiny("llama-gqa", tiny_folder)
    tokens = random_tokens(300)
    told = {}
    for size in (1, 2):
        settings = {
            "tensor_parallel_size": size,
            "kv_cache_memory_bytes": 64 << 20,
            "gpu_memory_utilization": 0.05,
        }
        with engine(folder, 40, 5, enforce_eager=eager, **settings) as llm:
            told[size] = llm.generate(
                [prompt(tokens)] * len(SINKS),
                [greedy(60, s, prompt_logprobs=0) for s in SINKS],
                use_tqdm=False,
            )
    for one, two in zip(told[1], told[2], strict=True):
        assert one.outputs[0].token_ids == two.outputs[0].token_ids
    assert_equal_the_reference(told[2], folder, SINKS, 40, bound=1e-3)
