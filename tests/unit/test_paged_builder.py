"""What a step looks like to the GPU's providers, built from vLLM's description of it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from vllm.v1.attention.backend import CommonAttentionMetadata

from tests.paged import Row, Shape, batch_of
from vllm_sink.attention.paged_builder import PagedStepBuilder
from vllm_sink.attention.paged_step import PagedStep
from vllm_sink.cache.spec import SinkWindowSpec

SINKS, WINDOW = 4, 50
SPEC = SinkWindowSpec(
    block_size=16,
    num_kv_heads=2,
    head_size=64,
    dtype=torch.float32,
    sink_tokens=SINKS,
    window_tokens=WINDOW,
)


def described(step: PagedStep) -> CommonAttentionMetadata:
    """The step as vLLM describes it."""
    assert step.host is not None
    return CommonAttentionMetadata(
        query_start_loc=step.query_start_loc,
        query_start_loc_cpu=step.query_start_loc,
        seq_lens=step.seq_lens,
        num_reqs=step.num_reqs,
        num_actual_tokens=step.num_tokens,
        max_query_len=step.max_query_len,
        max_seq_len=max(step.host.seq_lens),
        block_table_tensor=step.block_table,
        slot_mapping=torch.zeros(step.num_tokens, dtype=torch.int64),
        positions=step.positions,
        seq_lens_cpu_upper_bound=step.seq_lens,
    )


@pytest.mark.parametrize("capture", [False, True])
@pytest.mark.parametrize(
    "rows",
    [(Row(SINKS, 50), Row(SINKS, 30, 30)), (Row(SINKS, 51), Row(SINKS, 7, 3)), (Row(SINKS, 400),)],
    ids=["window just full", "one past it", "far past it"],
)
def test_a_step_under_the_engines_policy(rows: tuple[Row, ...], capture: bool) -> None:
    right = batch_of(Shape(window=WINDOW), rows).step
    builder = PagedStepBuilder(SPEC, "xformers", len(rows) + 3, torch.device("cpu"))
    policies = np.repeat(np.array([[SINKS], [WINDOW]], np.int32), len(rows), axis=1)
    step = builder.build(described(right), policies, capture=capture)
    # A captured graph is replayed for streams of any length.
    assert step.past_window == (capture or right.past_window)
    assert step.one_window
    assert step.sinks.equal(right.sinks)
    assert step.windows.equal(right.windows)
    assert (step.num_reqs, step.num_tokens) == (right.num_reqs, right.num_tokens)
    assert (step.max_query_len, step.block_size) == (right.max_query_len, right.block_size)
    assert step.positions.equal(right.positions)
    assert step.host == right.host


def test_only_xformers_gets_the_rows_on_the_host() -> None:
    right = batch_of(Shape(window=WINDOW), (Row(SINKS, 60),)).step
    builder = PagedStepBuilder(SPEC, "triton", 1, torch.device("cpu"))
    policies = np.array([[SINKS], [WINDOW]], np.int32)
    assert builder.build(described(right), policies, capture=False).host is None
