"""Index 1,000,000 is as good as index 0: angles are exact, and nothing drifts.

Two streams end in the same text. One reads a million other tokens first. Once that text has run
for more than (layers + 1) windows, every key and value that a token can reach, directly or through
other tokens, comes from the sinks and from the text: the state of the window is the same, only its
index is not.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.engines import engine, greedy, prompt, random_tokens, tiny

SINKS, WINDOW, LAYERS = 4, 60, 3
SETTLE = (LAYERS + 1) * WINDOW + SINKS
SCORED = 2_000


def _nll(llm: Any, stream: list[int]) -> float:
    """Mean negative log-likelihood of the last ``SCORED`` tokens of a stream."""
    (output,) = llm.generate(
        prompt(stream),
        greedy(1, prompt_logprobs=0, flat_logprobs=True, detokenize=False),
        use_tqdm=False,
    )
    told = output.prompt_logprobs
    first = len(stream) - SCORED
    return -math.fsum(told[i][stream[i]].logprob for i in range(first, len(stream))) / SCORED


@pytest.mark.parametrize(
    ("dtype", "far"),
    [
        ("bfloat16", 200_000),
        pytest.param("bfloat16", 1_000_000, marks=pytest.mark.slow),
        pytest.param("float32", 1_000_000, marks=pytest.mark.slow),
    ],
)
def test_perplexity_far_away(dtype: str, far: int, tiny_folder: Path) -> None:
    folder = tiny("llama-gqa", tiny_folder)
    text = random_tokens(SETTLE + SCORED, seed=1)
    sinks = random_tokens(SINKS, seed=2)
    filler = random_tokens(far, seed=3)
    with engine(
        folder,
        WINDOW,
        SINKS,
        dtype=dtype,
        max_model_len=far + 4096,
        max_num_batched_tokens=8192,
        max_num_seqs=1,
        enable_prefix_caching=False,
    ) as llm:
        near = _nll(llm, sinks + text)
        later = _nll(llm, sinks + filler + text)
    assert math.exp(later) == pytest.approx(math.exp(near), rel=1e-3)
