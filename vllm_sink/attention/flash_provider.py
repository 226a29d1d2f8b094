"""The ``flash`` provider: FlashAttention over the window, one small kernel that merges the sinks.

FlashAttention (Dao et al., arXiv 2205.14135; 3: Shah et al., arXiv 2407.08608) as vLLM ships it,
over the compact block tables of ``flash_plan``. With ``flash+triton``, steps that only decode go to
the fused kernel: one launch instead of two or three, and faster at every measured batch. So
do steps in which some request has a window of its own.
"""

from __future__ import annotations

import functools

import torch
from vllm.v1.attention.backends.fa_utils import (
    flash_attn_varlen_func,
    get_flash_attn_version,
    is_fa_version_supported,
)

from vllm_sink.attention import providers
from vllm_sink.attention.kernels.launch import FusedKernel
from vllm_sink.attention.layer import LayerParams
from vllm_sink.attention.paged_step import PagedStep


@functools.cache
def flash_version(head_size: int, alibi: bool = False) -> int | None:
    """2 or 3, as vLLM would choose; None where neither computes this on this GPU."""
    version = get_flash_attn_version(requires_alibi=alibi, head_size=head_size)
    if version not in (2, 3):
        # FlashAttention 4 has not been compared with the reference.
        return 2 if is_fa_version_supported(2) and head_size <= 256 else None
    return version


class FlashProvider:
    """One layer's attention.

    Args:
        layer: of the layer.
        dtype: of queries, keys and values.
        provider: its resolved name; see ``providers.fuses_decode``.
    """

    def __init__(self, layer: LayerParams, dtype: torch.dtype, provider: str) -> None:
        self.layer = layer
        self.provider = provider
        self.fused = FusedKernel(layer, dtype)
        self.version = flash_version(layer.head_size, layer.alibi_slopes is not None)
        self.window = [layer.window_tokens - 1, 0]

    def attend(
        self,
        step: PagedStep,
        query: torch.Tensor,
        key_cache: torch.Tensor,
        value_cache: torch.Tensor,
        output: torch.Tensor,
    ) -> None:
        """Attention of a step; shapes as in ``FusedKernel.attend``."""
        layer = self.layer
        decodes = step.max_query_len == 1 and providers.fuses_decode(self.provider)
        # FlashAttention takes one window for all rows.
        if decodes or not step.one_window:
            self.fused.attend(step, query, key_cache, value_cache, output)
            return
        sinks = layer.sinks and step.past_window
        result = flash_attn_varlen_func(
            q=query,
            k=key_cache,
            v=value_cache,
            out=output,
            cu_seqlens_q=step.query_start_loc,
            max_seqlen_q=step.max_query_len,
            seqused_k=step.window_lens,
            max_seqlen_k=step.max_window_len,
            softmax_scale=layer.scale,
            causal=True,
            alibi_slopes=layer.alibi_slopes,
            window_size=self.window,
            block_table=step.window_table,
            softcap=layer.soft_cap,
            scheduler_metadata=step.scheduler_metadata if self.version == 3 else None,
            # FlashAttention 2 chooses its own.
            num_splits=step.max_splits if self.version == 3 else 0,
            fa_version=self.version,
            return_softmax_lse=sinks,
        )
        if sinks:
            lse = result[1]
            self.fused.add_sinks(step, query, key_cache, value_cache, output, lse)
