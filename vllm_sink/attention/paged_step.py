"""What the GPU's providers need of a step: rows of a batch, their pages, no synchronisation."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch


@dataclass
class HostStep:
    """The same rows as plain numbers on the host; exact, because nothing is speculated.

    Attributes:
        query_lens: tokens of each row in this step.
        seq_lens: bookkeeping length of each row, this step included.
        sinks, windows: ``S`` and ``W`` of each row.
    """

    query_lens: list[int]
    seq_lens: list[int]
    sinks: list[int]
    windows: list[int]


@dataclass
class PagedStep:
    """A batch of rows: ``query_lens[r]`` new tokens of a stream each, decode and prefill mixed.

    Tensors are on the device, and persistent where a CUDA graph may have seen them.

    Attributes:
        num_reqs, num_tokens: rows and tokens of the step, padding of a CUDA graph included.
        max_query_len: maximum tokens of a row; 1 in a pure decode step.
        query_start_loc: int32 [num_reqs + 1], where the tokens of each row begin.
        seq_lens: int32 [num_reqs], bookkeeping length of each row, this step included.
        block_table: int32 [num_reqs, width]: bookkeeping index ``i`` lies in block ``i // size``;
            evicted blocks are null and must not be read.
        positions: int64 [num_tokens], the true index of each token.
        sinks: int32 [num_reqs], ``S`` of each row.
        windows: int32 [num_reqs], ``W`` of each row.
        block_size: tokens of a block.
        window_tokens: ``W`` of the engine: no row's is larger.
        one_window: every row's ``W`` is the engine's.
        past_window: whether some query may see a sink.
        window_table: int32 [num_reqs, columns], for ``flash`` where all rows have one window: the
            row's blocks from the first that the window of its first query touches.
        window_lens: int32 [num_reqs], ``seq_lens`` less the tokens before that block.
        max_window_len: no row's ``window_lens`` is larger.
        scheduler_metadata: FlashAttention 3's own plan of the step.
        max_splits: parts that FlashAttention 3 may cut a row into; 0 for its own choice.
        host: for ``xformers``, whose masks are made on the host.
    """

    num_reqs: int
    num_tokens: int
    max_query_len: int
    query_start_loc: torch.Tensor
    seq_lens: torch.Tensor
    block_table: torch.Tensor
    positions: torch.Tensor
    sinks: torch.Tensor
    windows: torch.Tensor
    block_size: int
    window_tokens: int
    past_window: bool
    one_window: bool = True
    window_table: torch.Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int32))
    window_lens: torch.Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int32))
    max_window_len: int = 0
    scheduler_metadata: torch.Tensor | None = None
    max_splits: int = 0
    host: HostStep | None = None
