"""``true_positions``, the experiment of ``benchmarks.paper``: sinks at their true positions.

Not the policy, and no flag sets it; but its figures are published.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.e2e.engines import engine, greedy, logprobs, prompt, random_tokens, tiny
from tests.reference import SinkReference
from vllm_sink.errors import UnsupportedError

WINDOW = 30


def _config(sinks: int, true_positions: bool) -> dict[str, Any]:
    policy = {
        "name": "sink",
        "sink_tokens": sinks,
        "window_tokens": WINDOW,
        "true_positions": true_positions,
    }
    return {"additional_config": {"kv_policy": policy}, "block_size": 16}


def _served(folder: Path, tokens: list[int], sinks: int, true_positions: bool) -> torch.Tensor:
    with engine(folder, None, **_config(sinks, true_positions)) as llm:
        (output,) = llm.generate(prompt(tokens), greedy(1, prompt_logprobs=0), use_tqdm=False)
    return logprobs(output)[: len(tokens) - 1]


def _reference(folder: Path, tokens: list[int], sinks: int, true_positions: bool) -> torch.Tensor:
    reference = SinkReference(folder, sinks, WINDOW, true_positions=true_positions)
    return reference.logprobs_of(tokens).double()


@pytest.mark.parametrize("arch", ["llama-gqa", "gptj"])
def test_equal_to_the_reference_and_unlike_the_policy(arch: str, tiny_folder: Path) -> None:
    folder = tiny(arch, tiny_folder)
    tokens = random_tokens(400)
    truly, cached = (_reference(folder, tokens, 4, there) for there in (True, False))
    assert (_served(folder, tokens, 4, True) - truly).abs().max() < 1e-4
    assert (_served(folder, tokens, 4, False) - cached).abs().max() < 1e-4
    # Until the window is full nothing is evicted: both are full attention.
    assert torch.equal(truly[: WINDOW - 1], cached[: WINDOW - 1])
    assert (truly - cached).abs().max() > 0.01


def test_without_sinks_both_are_one(tiny_folder: Path) -> None:
    """Scores depend on distances, and without sinks every distance is the true one."""
    folder = tiny("llama-gqa", tiny_folder)
    tokens = random_tokens(300)
    apart = _reference(folder, tokens, 0, True) - _reference(folder, tokens, 0, False)
    assert apart.abs().max() < 1e-4
    assert torch.equal(_served(folder, tokens, 0, True), _served(folder, tokens, 0, False))


def test_alibi_is_refused(tiny_folder: Path) -> None:
    with (
        pytest.raises(UnsupportedError, match="true_positions with ALiBi"),
        engine(tiny("falcon-alibi", tiny_folder), None, **_config(4, True)),
    ):
        pass
