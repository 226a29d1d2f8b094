"""Which keys the queries of a step see, as runs of queries and runs of keys on the host.

::

    window      the last query of a run sees its last W keys, the one before it W keys that end one
                earlier, and so on
    staircase   sinks that leave the window one by one: each query sees one more than the last
    full        sinks that have all left the window
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch

from vllm_sink.attention.paged_step import HostStep


class Run(NamedTuple):
    """Consecutive queries of a row and the consecutive keys that they see.

    Attributes:
        row: of the batch.
        token, queries: the first of the step's tokens, and how many.
        key, keys: bookkeeping index of the first key, and how many.
    """

    row: int
    token: int
    queries: int
    key: int
    keys: int


def window_runs(host: HostStep, layer_window: int) -> dict[int, list[Run]]:
    """The new tokens of every row, each run with the windows of its queries, by their ``W``.

    Args:
        host: the rows.
        layer_window: of the layer, in tokens; a row's ``W`` holds where it is smaller.
    """
    runs: dict[int, list[Run]] = {}
    token = 0
    for row, (count, length) in enumerate(zip(host.query_lens, host.seq_lens, strict=True)):
        if count:
            window = min(layer_window, host.windows[row])
            low = max(0, length - count - window + 1)
            runs.setdefault(window, []).append(Run(row, token, count, low, length - low))
        token += count
    return runs


def sink_runs(host: HostStep) -> tuple[list[Run], list[Run]]:
    """Runs of the queries that see sinks: ``(staircase, full)``.

    In ``staircase`` the last query sees all keys of its run, the one before it one less, and so on;
    single queries are there too. In ``full`` every query sees all keys.
    """
    staircase: list[Run] = []
    full: list[Run] = []
    end = 0
    for row, (count, length) in enumerate(zip(host.query_lens, host.seq_lens, strict=True)):
        end += count
        sinks, window = host.sinks[row], host.windows[row]
        # Query i sees the sinks up to i - W: none before W, all from S + W - 1 on.
        first = max(length - count, window)
        if not sinks or first >= length:
            continue
        first_full = min(max(first, sinks + window - 1), length)
        if first < first_full:
            queries, keys = first_full - first, first_full - window
            staircase.append(Run(row, end - (length - first), queries, 0, keys))
        if first_full < length:
            run = Run(row, end - (length - first_full), length - first_full, 0, sinks)
            (full if run.queries > 1 else staircase).append(run)
    return staircase, full


def batches(runs: Iterable[Run], max_keys: int) -> Iterator[list[Run]]:
    """``runs`` in order, together while they have at most ``max_keys`` keys; a longer run alone."""
    batch: list[Run] = []
    keys = 0
    for run in runs:
        if batch and keys + run.keys > max_keys:
            yield batch
            batch, keys = [], 0
        batch.append(run)
        keys += run.keys
    if batch:
        yield batch


class RunBatch:
    """Runs of one call, on the device.

    Attributes:
        runs: the runs.
        run: int64 [queries], which run a query belongs to.
        token: int64 [queries], which of the step's tokens it is.
        key_row, key: int64 [keys], batch row and bookkeeping index of every key.
    """

    def __init__(self, runs: list[Run], device: torch.device) -> None:
        self.runs = runs
        row, token, queries, key, keys = torch.tensor(runs, device=device).unbind(1)
        self.run, self.token = _ranges(token, queries, sum(r.queries for r in runs))
        key_run, self.key = _ranges(key, keys, sum(r.keys for r in runs))
        self.key_row = row[key_run]


def _ranges(
    start: torch.Tensor, count: torch.Tensor, total: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Ranges end to end: of which range each element is, and its value; int64 [total] both."""
    # A known size spares repeat_interleave the wait for the device.
    range_of = torch.repeat_interleave(count, output_size=total)
    first = count.cumsum(0) - count
    return range_of, torch.arange(total, device=start.device) + (start - first)[range_of]
