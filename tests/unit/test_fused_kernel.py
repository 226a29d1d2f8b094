"""The Triton kernels, run by Triton's interpreter: the same source, without a GPU."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from tests.paged import BATCHES, MIXED, SHAPES, Shape, attention, batch_of, expected


def test_in_the_interpreter() -> None:
    pytest.importorskip("triton")
    options = ("-q", "-p", "no:cacheprovider", "-m", "interpreted")
    result = subprocess.run(
        [sys.executable, "-m", "pytest", *options, __file__],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout[-5000:]
    assert " passed" in result.stdout


#: The interpreter is slow, and heads of 256 are another size of the same.
INTERPRETED = [name for name in SHAPES if name != "size 256"]

#: One window for all rows is a case of many, and the interpreter is slow.
CASES = [(s, b) for s in INTERPRETED for b in BATCHES if s == "plain" or "windows" in b]

#: Merging goes the same ways through a shape, but for these.
MERGED = [(s, b) for s, b in CASES if s in ("plain", "alibi", "soft cap", "odd head size")]

#: vLLM's CPU build switches Triton off where it sees it, and the interpreter must be chosen before
#: the kernels are defined: these tests run in a process of their own.
interpreted = pytest.mark.interpreted


@interpreted
@pytest.mark.parametrize(("name", "batch_name"), CASES)
def test_equals_the_rules(name: str, batch_name: str) -> None:
    from vllm_sink.attention.kernels.launch import FusedKernel
    from vllm_sink.attention.kernels.tuning import Tuning

    rows = BATCHES[batch_name]
    batch = batch_of(SHAPES[name], rows, padding=2)
    kernel = FusedKernel(batch.layer, torch.float32)
    # Small tiles, so that a test of this size has several.
    kernel.prefill = replace(kernel.prefill, block_m=16, block_n=16)
    kernel.decode = lambda splits: Tuning(16, block_n=16, warps=4, stages=2)
    right = expected(batch)
    for splits in (1, 4) if all(row.count == 1 for row in rows) else (1,):
        output = torch.full_like(batch.query, torch.nan)
        args = (batch.step, batch.query, batch.key_cache, batch.value_cache)
        kernel.attend(*args, output, splits=splits)
        assert (output - right).abs().max() < 1e-5, f"{splits} parts"


@interpreted
@pytest.mark.parametrize(("name", "batch_name"), MERGED)
def test_sinks_merge_into_a_window(name: str, batch_name: str) -> None:
    """On top of attention over the window alone, computed another way."""
    from vllm_sink.attention.kernels.launch import FusedKernel

    batch = batch_of(SHAPES[name], BATCHES[batch_name])
    window_only = replace(batch, layer=replace(batch.layer, sinks=False))
    output, lse = (x.float() for x in attention(window_only))
    kernel = FusedKernel(batch.layer, torch.float32)
    kernel.add_sinks(batch.step, batch.query, batch.key_cache, batch.value_cache, output, lse)
    assert (output - expected(batch)).abs().max() < 1e-5


@interpreted
def test_compact_tables() -> None:
    from vllm_sink.attention.kernels.compact_tables import compact

    batch = batch_of(Shape(), MIXED, padding=1)
    step = batch.step
    table = torch.full((step.num_reqs + 2, step.window_table.shape[1] + 3), -1, dtype=torch.int32)
    lens = torch.full((step.num_reqs + 2,), -1, dtype=torch.int32)
    compact(step, table, lens, step.window_tokens)
    assert lens[: step.num_reqs].equal(step.window_lens)
    assert table[: step.num_reqs, : step.window_table.shape[1]].equal(step.window_table)
    assert (table[step.num_reqs :] == -1).all()
