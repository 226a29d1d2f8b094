"""Launching the fused kernel for a layer."""

from __future__ import annotations

import functools

import torch
import triton

from vllm_sink.attention.kernels.arguments import (
    CacheStrides,
    KernelConfig,
    Partials,
    QueryStrides,
    Rows,
)
from vllm_sink.attention.kernels.fused import sink_attention
from vllm_sink.attention.kernels.tuning import (
    Tuning,
    decode_tuning,
    merge_tuning,
    prefill_tuning,
    programs_that_fill,
    splits_of,
)
from vllm_sink.attention.layer import LayerParams
from vllm_sink.attention.paged_step import PagedStep

#: Sinks that a decode step loads ahead; a matrix product takes no fewer keys.
EARLY_SINKS = 16


@functools.cache
def scratch(device: torch.device, programs: int, group: int, padded_size: int) -> Partials:
    """Memory for the parts of ``programs`` programs.

    Kept while the process lives, because CUDA graphs hold its address.
    """
    return Partials(
        results=torch.empty(programs * group * padded_size, dtype=torch.float32, device=device),
        lse=torch.empty(programs * group, dtype=torch.float32, device=device),
        arrived=torch.zeros(programs, dtype=torch.int32, device=device),
    )


class FusedKernel:
    """The fused kernel for one layer.

    Args:
        layer: its shape and constants.
        dtype: of queries, keys and values.
    """

    def __init__(self, layer: LayerParams, dtype: torch.dtype) -> None:
        self.layer = layer
        self.padded_size = max(16, triton.next_power_of_2(layer.head_size))
        self.itemsize = dtype.itemsize
        self.merge = merge_tuning(layer)
        self.prefill = prefill_tuning(layer, dtype.itemsize)
        # TF32 would cut float32 scores to 10 bits.
        self.precision = "ieee" if dtype == torch.float32 else "tf32"

    def decode(self, splits: int) -> Tuning:
        """Sizes of a decode step whose rows are cut into ``splits`` parts."""
        return decode_tuning(self.layer, self.itemsize, splits)

    def splits(self, rows: int, device: torch.device) -> int:
        """Parts of a row in a decode step of ``rows`` rows."""
        return splits_of(self.layer, rows, device)

    def attend(
        self,
        step: PagedStep,
        query: torch.Tensor,
        key_cache: torch.Tensor,
        value_cache: torch.Tensor,
        output: torch.Tensor,
        *,
        splits: int | None = None,
    ) -> None:
        """Attention over sinks and window.

        Args:
            step: the batch.
            query: [tokens, num_heads, head_size], rotated at their true index.
            key_cache, value_cache: [blocks, block_size, num_kv_heads, head_size], channels
                contiguous.
            output: as ``query``, written.
            splits: parts of a row in a decode step, where the default is not wanted.
        """
        if step.max_query_len > 1:
            splits = 1
        elif splits is None:
            splits = self.splits(step.num_reqs, query.device)
        self._launch(step, query, key_cache, value_cache, output, None, splits)

    def add_sinks(
        self,
        step: PagedStep,
        query: torch.Tensor,
        key_cache: torch.Tensor,
        value_cache: torch.Tensor,
        output: torch.Tensor,
        lse: torch.Tensor,
    ) -> None:
        """Merge the sinks into ``output``, the attention over the window.

        Args:
            step, query, key_cache, value_cache: as in ``attend``.
            output: [tokens, num_heads, head_size], read and written.
            lse: float32 [num_heads, tokens], log-sum-exp of the scores behind ``output``.
        """
        self._launch(step, query, key_cache, value_cache, output, lse, 1)

    def _launch(
        self,
        step: PagedStep,
        query: torch.Tensor,
        key_cache: torch.Tensor,
        value_cache: torch.Tensor,
        output: torch.Tensor,
        lse: torch.Tensor | None,
        splits: int,
    ) -> None:
        """One launch: arguments as in ``add_sinks``, ``lse`` None without a result to add to."""
        layer = self.layer
        decode = step.max_query_len == 1
        tuning = self.prefill
        if decode:
            tuning = self.merge if lse is not None else self.decode(splits)
        block_q = 1 if decode else max(1, tuning.block_m // layer.group)
        programs = step.num_reqs if decode else step.num_tokens // block_q + step.num_reqs
        rotary = layer.rotary
        # An argument that the kernel does not read is some other tensor: None would compile anew.
        partials = Partials(output, output, output)
        if splits > 1:
            # Rows are cut only while they are fewer than the programs that fill the GPU.
            needed = max(
                programs_that_fill(query.device), step.num_reqs * layer.num_kv_heads * splits
            )
            partials = scratch(query.device, needed, layer.group, self.padded_size)
        config = KernelConfig(
            layer_window=layer.window_tokens,
            group=layer.group,
            head_size=layer.head_size,
            padded_size=self.padded_size,
            block_m=tuning.block_m,
            block_q=block_q,
            block_n=tuning.block_n,
            block_size=step.block_size,
            pairs=0 if rotary is None else rotary.units.numel(),
            neox=rotary is None or rotary.is_neox_style,
            has_alibi=layer.alibi_slopes is not None,
            has_soft_cap=layer.soft_cap > 0,
            has_sinks=layer.sinks,
            merge=lse is not None,
            splits=splits,
            decode=decode,
            early_sinks=EARLY_SINKS if decode else 0,
            precision=self.precision,
            fast_trigonometry=query.is_cuda,
        )
        sink_attention[(layer.num_kv_heads, programs, splits)](
            query,
            key_cache,
            value_cache,
            output,
            output if lse is None else lse,
            partials,
            step.block_table,
            Rows(step.query_start_loc, step.seq_lens, step.positions, step.sinks, step.windows),
            step.seq_lens if rotary is None else rotary.units,
            step.seq_lens if layer.alibi_slopes is None else layer.alibi_slopes,
            layer.scale,
            layer.soft_cap,
            step.num_reqs,
            QueryStrides(query.stride(0), query.stride(1)),
            QueryStrides(output.stride(0), output.stride(1)),
            CacheStrides(key_cache.stride(0), key_cache.stride(1), key_cache.stride(2)),
            0 if lse is None else lse.stride(0),
            step.block_table.stride(0),
            config=config,
            num_warps=tuning.warps,
            num_stages=tuning.stages,
        )
