"""Compiles every kernel that a stream may need before the first request.

vLLM's own warm-up runs short requests, in which no sink has left a window: the first stream to fill
its window would wait for a compiler, and every tenant with it.
"""

from __future__ import annotations

from typing import Any

import torch
from vllm.model_executor.layers.attention import Attention

from vllm_sink import compat
from vllm_sink.attention import providers
from vllm_sink.attention.backend import SinkAttentionImpl
from vllm_sink.attention.kernels.launch import FusedKernel
from vllm_sink.attention.metadata import SinkMetadata, SinkMetadataBuilder
from vllm_sink.attention.paged_step import HostStep, PagedStep
from vllm_sink.config.kv_policy import policy_of


def warm_up(runner: Any, vllm_config: Any) -> None:
    """Run one layer of each kind on made-up steps that are past the window.

    They read the null block and write to memory of their own.

    Args:
        runner: vLLM's model runner, its KV cache bound.
        vllm_config: of the engine.
    """
    kv_policy = policy_of(vllm_config)
    assert kv_policy is not None
    (builder,) = {
        id(b): b for gs in runner.attn_groups for g in gs for b in g.metadata_builders
    }.values()
    assert isinstance(builder, SinkMetadataBuilder)
    rows = vllm_config.scheduler_config.max_num_seqs
    warm = set()
    for layer in runner.get_model().modules():
        if not isinstance(layer, Attention):
            continue
        impl = layer.impl
        assert isinstance(impl, SinkAttentionImpl)
        kind = (impl.num_heads, impl.layer.window_tokens, impl.layer.sinks, impl.layer.soft_cap)
        if kind in warm:
            continue
        warm.add(kind)
        for counts in _steps(impl, vllm_config.model_config.dtype, rows, runner.device):
            step = _step(runner, builder, counts, kv_policy.window)
            shape = (step.num_tokens, impl.num_heads, impl.head_size)
            query = torch.zeros(shape, dtype=vllm_config.model_config.dtype, device=runner.device)
            metadata = SinkMetadata(step.num_tokens, step.positions, paged=step)
            output = torch.empty_like(query)
            impl.forward(layer, query, query, query, layer.kv_cache, metadata, output)
    torch.accelerator.synchronize()


def _steps(
    impl: SinkAttentionImpl, dtype: torch.dtype, rows: int, device: torch.device
) -> list[list[int]]:
    """Tokens of each row: a mixed step, and a decode step for each number of parts."""
    mixed = [3, 1][:rows]
    if not providers.fuses_decode(impl.provider_name):
        return [mixed, [1]]
    kernel = FusedKernel(impl.layer, dtype)
    rows_of_splits: dict[int, int] = {}
    for num_rows in range(1, rows + 1):
        rows_of_splits.setdefault(kernel.splits(num_rows, device), num_rows)
    return [mixed, *([1] * num_rows for num_rows in rows_of_splits.values())]


def _step(runner: Any, builder: SinkMetadataBuilder, counts: list[int], window: int) -> PagedStep:
    """Rows of ``counts`` tokens, past a window of ``window`` tokens."""
    device = runner.device
    table = compat.block_table(runner, len(counts))
    # Far enough that sinks are seen, and inside the table.
    length = min(window + 8, table.shape[1] * builder.spec.block_size)
    rows = len(counts)
    starts = torch.tensor([0, *counts]).cumsum(0).int()
    step = PagedStep(
        num_reqs=rows,
        num_tokens=sum(counts),
        max_query_len=max(counts),
        query_start_loc=starts.to(device),
        seq_lens=torch.full((rows,), length, dtype=torch.int32, device=device),
        block_table=table,
        positions=torch.full((sum(counts),), length, dtype=torch.int64, device=device),
        sinks=torch.full((rows,), 4, dtype=torch.int32, device=device),
        windows=torch.full((rows,), window, dtype=torch.int32, device=device),
        block_size=builder.spec.block_size,
        window_tokens=window,
        past_window=True,
        host=HostStep(counts, [length] * rows, [4] * rows, [window] * rows),
    )
    if builder.paged is not None and builder.paged.plan is not None:
        builder.paged.plan.fill(step)
    return step
