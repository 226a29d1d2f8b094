"""Launching the fused kernel: tile sizes, parts of a row, scratch memory."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
import triton

from vllm_sink.attention.kernels.fused import compact_tables, sink_attention
from vllm_sink.attention.layer import LayerParams
from vllm_sink.attention.paged_step import PagedStep

#: No row is cut into more parts: the last program reads them all.
MAX_SPLITS = 32

#: Programs a processor is given when rows are cut into parts.
WAVES = 2


@dataclass(frozen=True)
class Tuning:
    """Sizes of a launch, found on an H100 with benchmarks.kernel.

    Attributes:
        block_m: rows of queries of a program (heads of a group times tokens).
        block_n: keys of a step of the loop.
        warps, stages: of a program; stages of loads in flight.
    """

    block_m: int
    block_n: int
    warps: int
    stages: int


def decode_tuning(layer: LayerParams, itemsize: int, splits: int) -> Tuning:
    """Of a decode step. Few keys a program: small blocks, soon begun; many: large ones."""
    group = layer.num_heads // layer.num_kv_heads
    block_m = max(16, triton.next_power_of_2(group))
    keys = 4096 // (layer.head_size * itemsize)  # in 4 KiB
    if layer.window_tokens // splits > 2048:
        return Tuning(block_m, block_n=_between(16, 8 * keys, 128), warps=4, stages=3)
    return Tuning(block_m, block_n=_between(16, 2 * keys, 64), warps=4, stages=5)


def _between(low: int, value: int, high: int) -> int:
    """A power of two, as Triton's blocks must be."""
    return max(low, min(triton.next_power_of_2(value), high))


def merge_tuning(layer: LayerParams, itemsize: int) -> Tuning:
    """Of a decode step's sinks alone: few keys."""
    group = layer.num_heads // layer.num_kv_heads
    return Tuning(max(16, triton.next_power_of_2(group)), block_n=16, warps=2, stages=2)


def prefill_tuning(layer: LayerParams, itemsize: int) -> Tuning:
    group = layer.num_heads // layer.num_kv_heads
    wide = layer.head_size * itemsize > 256
    block_m = 32 if layer.head_size * itemsize > 512 else 64 if wide else 128
    return Tuning(
        block_m=max(block_m, triton.next_power_of_2(group)),
        block_n=32 if wide else 64,
        warps=4 if wide else 8,
        stages=2 if wide else 3,
    )


@functools.cache
def processors(device: torch.device) -> int:
    """Streaming multiprocessors of a GPU; 1 where the kernels are interpreted."""
    if device.type != "cuda":
        return 1
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


@dataclass
class Scratch:
    """Partial results of rows that are cut into parts; shared by layers, which run in turn.

    Attributes:
        results: float32, the parts' results.
        lse: float32, their log-sum-exp.
        arrived: int32, how many parts of a row are done; zero between launches.
    """

    results: torch.Tensor
    lse: torch.Tensor
    arrived: torch.Tensor


@functools.cache
def scratch(device: torch.device, programs: int, group: int, padded: int) -> Scratch:
    """Memory for so many programs, at one address for ever: CUDA graphs remember it."""
    return Scratch(
        results=torch.empty(programs * group * padded, dtype=torch.float32, device=device),
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
        self.group = layer.num_heads // layer.num_kv_heads
        self.padded = max(16, triton.next_power_of_2(layer.head_size))
        self.itemsize = dtype.itemsize
        self.merge = merge_tuning(layer, dtype.itemsize)
        self.prefill = prefill_tuning(layer, dtype.itemsize)
        # TF32 would cut float32 scores to 10 bits.
        self.precision = "ieee" if dtype == torch.float32 else "tf32"

    def decode(self, splits: int) -> Tuning:
        return decode_tuning(self.layer, self.itemsize, splits)

    def splits(self, rows: int, device: torch.device) -> int:
        """Parts of a row in a decode step of ``rows`` rows: a power of two, so that few kernels
        are compiled, and none where the batch fills the GPU by itself.
        """
        programs = rows * self.layer.num_kv_heads
        wanted = WAVES * processors(device) // programs
        most = min(MAX_SPLITS, max(1, self.layer.window_tokens // 32))
        return 1 << (max(1, min(wanted, most)).bit_length() - 1)

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
        decode = step.max_query_len == 1
        if splits is None:
            splits = self.splits(step.num_reqs, query.device) if decode else 1
        if not decode:
            splits = 1
        self._launch(step, query, key_cache, value_cache, output, None, decode, splits)

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
        decode = step.max_query_len == 1
        self._launch(step, query, key_cache, value_cache, output, lse, decode, 1)

    def _launch(
        self,
        step: PagedStep,
        query: torch.Tensor,
        key_cache: torch.Tensor,
        value_cache: torch.Tensor,
        output: torch.Tensor,
        lse: torch.Tensor | None,
        decode: bool,
        splits: int,
    ) -> None:
        layer = self.layer
        tuning = self.prefill
        if decode:
            tuning = self.merge if lse is not None else self.decode(splits)
        block_q = 1 if decode else max(1, tuning.block_m // self.group)
        programs = step.num_reqs if decode else step.num_tokens // block_q + step.num_reqs
        rotary = layer.rotary
        parts = part_lse = arrived = output
        if splits > 1:
            # Rows are cut only while they are fewer than the programs that fill the GPU.
            full = WAVES * processors(query.device)
            needed = max(full, step.num_reqs * layer.num_kv_heads * splits)
            memory = scratch(query.device, needed, self.group, self.padded)
            parts, part_lse, arrived = memory.results, memory.lse, memory.arrived
        sink_attention[(layer.num_kv_heads, programs, splits)](
            query,
            key_cache,
            value_cache,
            output,
            output if lse is None else lse,
            parts,
            part_lse,
            arrived,
            step.block_table,
            step.query_start_loc,
            step.seq_lens,
            step.positions,
            step.sinks,
            step.windows,
            step.seq_lens if rotary is None else rotary.units,
            step.seq_lens if layer.alibi_slopes is None else layer.alibi_slopes,
            layer.scale,
            layer.soft_cap,
            step.num_reqs,
            query.stride(0),
            query.stride(1),
            output.stride(0),
            output.stride(1),
            key_cache.stride(0),
            key_cache.stride(1),
            key_cache.stride(2),
            0 if lse is None else lse.stride(0),
            step.block_table.stride(0),
            layer_window=layer.window_tokens,
            GROUP=self.group,
            D=layer.head_size,
            D_PADDED=self.padded,
            BLOCK_M=tuning.block_m,
            BLOCK_Q=block_q,
            BLOCK_N=tuning.block_n,
            BLOCK_SIZE=step.block_size,
            PAIRS=0 if rotary is None else rotary.units.numel(),
            NEOX=rotary is None or rotary.is_neox_style,
            ALIBI=layer.alibi_slopes is not None,
            SOFT_CAP=layer.soft_cap > 0,
            SINKS=layer.sinks,
            WINDOW=lse is None,
            MERGE=lse is not None,
            SPLITS=splits,
            DECODE=decode,
            PRECISION=self.precision,
            FAST=query.is_cuda,
            num_warps=tuning.warps,
            num_stages=tuning.stages,
        )


def compact(step: PagedStep, table: torch.Tensor, lens: torch.Tensor, window_tokens: int) -> None:
    """Write the window's part of the block tables.

    Args:
        step: the batch.
        table: int32 [>= num_reqs, columns], written.
        lens: int32 [>= num_reqs], written: see ``PagedStep.window_lens``.
        window_tokens: the largest window of a layer.
    """
    columns = 256
    compact_tables[(step.num_reqs, triton.cdiv(table.shape[1], columns))](
        step.block_table,
        table,
        lens,
        step.query_start_loc,
        step.seq_lens,
        step.block_table.stride(0),
        table.stride(0),
        table.shape[1],
        window=window_tokens,
        BLOCK_SIZE=step.block_size,
        COLUMNS=columns,
    )
