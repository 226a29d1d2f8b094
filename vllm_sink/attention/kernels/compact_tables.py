"""Block tables that begin at the window's first block, for FlashAttention."""

from __future__ import annotations

# mypy: disable-error-code="no-untyped-def, untyped-decorator"
import torch
import triton
import triton.language as tl

from vllm_sink.attention.paged_step import PagedStep


@triton.jit(do_not_specialize=["compact_columns"])
def compact_tables(
    table_ptr,
    compact_ptr,
    lens_ptr,
    query_start_loc,
    seq_lens,
    stride_table,
    stride_compact,
    compact_columns,
    window: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Each row's blocks from the first that the window of its first query touches.

    Args:
        table_ptr: int32 [rows, columns].
        compact_ptr: int32 [rows, compact_columns], written.
        lens_ptr: int32 [rows], written: length in tokens from the first of these blocks on.
        query_start_loc: int32 [rows + 1], where the tokens of each row begin.
        seq_lens: int32 [rows], bookkeeping length in tokens.
        stride_table, stride_compact: of a row in either table, in elements.
        window: in tokens, of every row.
        BLOCK_SIZE: tokens of a block.
        COLUMNS: columns that a program writes; the grid is (rows, programs of a row).
    """
    row = tl.program_id(0)
    length = tl.load(seq_lens + row)
    count = tl.load(query_start_loc + row + 1) - tl.load(query_start_loc + row)
    first = tl.maximum(length - count - window + 1, 0) // BLOCK_SIZE
    blocks = (length + BLOCK_SIZE - 1) // BLOCK_SIZE - first
    if tl.program_id(1) == 0:
        tl.store(lens_ptr + row, length - first * BLOCK_SIZE)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    block = tl.load(
        table_ptr + row.to(tl.int64) * stride_table + first + column,
        mask=column < blocks,
        other=0,
    )
    tl.store(
        compact_ptr + row.to(tl.int64) * stride_compact + column,
        block,
        mask=column < compact_columns,
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
