"""A step for FlashAttention: compact block tables and FlashAttention 3's own plan.

FlashAttention walks a block table from its first column. A stream's table is as wide as the stream
is long, with null blocks where it was evicted; the compact one begins at the window's first block.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from vllm.config import get_layers_from_vllm_config
from vllm.model_executor.layers.attention import Attention

from vllm_sink.attention import providers
from vllm_sink.attention.flash_provider import flash_version
from vllm_sink.attention.kernels.compact_tables import compact
from vllm_sink.attention.paged_step import PagedStep
from vllm_sink.cache.spec import SinkWindowSpec
from vllm_sink.config.kv_policy import policy_of
from vllm_sink.policy import cdiv


def compact_columns(window_tokens: int, tokens: int, block_size: int) -> int:
    """Columns that hold the windows of ``tokens`` queries in a row."""
    return cdiv(window_tokens - 1 + tokens, block_size) + 1


@dataclass(frozen=True)
class FlashShape:
    """What the plan of every step has in common.

    Attributes:
        provider: resolved name.
        window_tokens: ``W`` of the engine.
        uniform_window: the window of every layer, 0 where they differ or have ALiBi: then
            FlashAttention 3 plans each call by itself.
        num_heads, num_kv_heads, head_size, block_size, dtype: of the cache and its queries.
        rows, tokens: maximum of a step, padding included.
        graph_tokens: maximum tokens of a CUDA graph that holds attention; 0 without.
        graph_splits: parts that a graph's scratch memory is sized for; vLLM's own setting.
    """

    provider: str
    window_tokens: int
    uniform_window: int
    num_heads: int
    num_kv_heads: int
    head_size: int
    block_size: int
    dtype: torch.dtype
    rows: int
    tokens: int
    graph_tokens: int
    graph_splits: int

    @classmethod
    def of(
        cls, spec: SinkWindowSpec, layer_names: list[str], vllm_config: Any, rows: int
    ) -> FlashShape:
        """Of an engine whose layers exist."""
        kv_policy = policy_of(vllm_config)
        assert kv_policy is not None
        layers = get_layers_from_vllm_config(vllm_config, Attention, layer_names)
        params = [layer.impl.layer for layer in layers.values()]
        windows = {p.window_tokens for p in params}
        alibi = any(p.alibi_slopes is not None for p in params)
        compilation = vllm_config.compilation_config
        graphs = compilation.cudagraph_mode.has_full_cudagraphs()
        return cls(
            provider=kv_policy.provider,
            window_tokens=spec.window_tokens,
            uniform_window=0 if alibi or len(windows) > 1 else windows.pop(),
            num_heads=params[0].num_heads,
            num_kv_heads=spec.num_kv_heads,
            head_size=spec.head_size,
            block_size=spec.block_size,
            dtype=spec.dtype,
            rows=rows,
            tokens=vllm_config.scheduler_config.max_num_batched_tokens,
            graph_tokens=(compilation.max_cudagraph_capture_size or 0) if graphs else 0,
            graph_splits=vllm_config.attention_config.flash_attn_max_num_splits_for_cuda_graph,
        )


class FlashPlan:
    """Persistent buffers of an engine, filled once a step."""

    def __init__(self, shape: FlashShape, device: torch.device) -> None:
        self.shape = shape
        columns = compact_columns(shape.window_tokens, shape.tokens, shape.block_size)
        self.table = torch.zeros((shape.rows, columns), dtype=torch.int32, device=device)
        self.lens = torch.zeros(shape.rows, dtype=torch.int32, device=device)
        # One number and four vectors over the rows, padded to four.
        rows = 4 * cdiv(shape.rows, 4)
        self.metadata = torch.zeros(1 + 4 * rows, dtype=torch.int32, device=device)
        self.version = flash_version(shape.head_size)

    def fill(self, step: PagedStep) -> None:
        """Set the step's compact tables, its plan and its splits."""
        shape = self.shape
        decodes = step.max_query_len == 1 and providers.fuses_decode(shape.provider)
        if decodes or not step.one_window:
            return
        columns = compact_columns(shape.window_tokens, step.max_query_len, shape.block_size)
        step.window_table = self.table[: step.num_reqs, :columns]
        step.window_lens = self.lens[: step.num_reqs]
        step.max_window_len = columns * shape.block_size
        compact(step, step.window_table, step.window_lens, shape.window_tokens)
        if step.num_tokens <= shape.graph_tokens:
            step.max_splits = shape.graph_splits
        if shape.uniform_window and self.version == 3:
            step.scheduler_metadata = self._flash3(step)

    def _flash3(self, step: PagedStep) -> torch.Tensor:
        from vllm.v1.attention.backends.fa_utils import get_scheduler_metadata

        shape = self.shape
        plan = get_scheduler_metadata(
            batch_size=step.num_reqs,
            max_seqlen_q=step.max_query_len,
            max_seqlen_k=step.max_window_len,
            num_heads_q=shape.num_heads,
            num_heads_kv=shape.num_kv_heads,
            headdim=shape.head_size,
            cache_seqlens=step.window_lens,
            qkv_dtype=shape.dtype,
            cu_seqlens_q=step.query_start_loc,
            page_size=shape.block_size,
            causal=True,
            window_size=(shape.uniform_window - 1, 0),
            num_splits=step.max_splits,
        )
        # At one address for CUDA graphs; zero where FlashAttention would read a larger step's plan.
        n = plan.shape[0]
        self.metadata[:n] = plan
        self.metadata[n:] = 0
        return self.metadata[:n]
