"""Which cache slots every query of a step reads: built once a step, used by every layer.

A step's queries are cut into runs of one stream each. The window keys of a run are one run of the
stream's bookkeeping indices; its sinks are the stream's first tokens::

    stream:   0 .. S-1 | evicted | lo .............. i0 .. i1-1
                                    window of query i0
                                               window of query i1-1

Runs of equal length are batched into a tile.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field, fields
from typing import TypeVar

import torch
from vllm.v1.attention.backend import CommonAttentionMetadata

from vllm_sink.policy import StreamPolicy

T = TypeVar("T")

#: Queries of a run of prefill: what a run reads beyond its windows is at most this many keys.
RUN_QUERIES = 128


@dataclass
class Tile:
    """``n`` runs of ``q`` queries and ``k`` window keys each (q = 1 for decode).

    Sink tensors are None where no query of the tile is past its window.

    Attributes:
        queries: int64 [n, q], which of the step's tokens.
        window_slots: int64 [n, k], slots of the window keys.
        distance: int64 [n, q, k], query index less key index; negative for a key that the query
            may not see: one of the future, or padding.
        sink_slots: int64 [n, S], slots of the sinks.
        sink_visible: bool [n, q, S], the sinks that have left the window of a query.
        evicted: int64 [n, q], e(t).
        sink_distance: int64 [n, q, S], cache position of the query less that of the sink.
        window_tokens: ``W`` of its streams.
        memo: what layers have computed from the above; see ``once``.
    """

    queries: torch.Tensor
    window_slots: torch.Tensor
    distance: torch.Tensor
    window_tokens: int
    sink_slots: torch.Tensor | None = None
    sink_visible: torch.Tensor | None = None
    evicted: torch.Tensor | None = None
    sink_distance: torch.Tensor | None = None
    memo: dict[Hashable, object] = field(default_factory=dict)

    def once(self, key: Hashable, compute: Callable[[], T]) -> T:
        """The result of ``compute``, which only the first layer that needs ``key`` calls.

        Masks and angles are the same in every layer of a step, and cost more than what they are
        applied to.
        """
        if key not in self.memo:
            self.memo[key] = compute()
        return self.memo[key]  # type: ignore[return-value]

    def visible(self, window_tokens: int) -> torch.Tensor:
        """bool [n, q, k]: the window keys that a layer with this window sees."""
        return (self.distance >= 0) & (self.distance < min(window_tokens, self.window_tokens))

    def part(self, runs: slice) -> Tile:
        """Some runs of the tile."""
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "memo"}
        parts = {k: v[runs] if isinstance(v, torch.Tensor) else v for k, v in values.items()}
        return Tile(**parts)


@dataclass(frozen=True)
class TileCutter:
    """Cuts a step into tiles.

    Attributes:
        block_size: tokens of a block.
    """

    block_size: int

    def cut(
        self,
        step: CommonAttentionMetadata,
        starts: list[int],
        lengths: list[int],
        sinks: list[int],
        windows: list[int],
    ) -> list[Tile]:
        """Every query of the step in exactly one tile.

        Args:
            step: vLLM's description of it, with positions.
            starts: where the tokens of each row begin, and where the last one's end.
            lengths: bookkeeping length of each row.
            sinks, windows: ``S`` and ``W`` of each row.
        """
        tiles: list[Tile] = []
        decodes: dict[StreamPolicy, list[int]] = {}
        for row in range(step.num_reqs):
            count = starts[row + 1] - starts[row]
            policy = StreamPolicy(sinks[row], windows[row])
            if count == 1:
                decodes.setdefault(policy, []).append(row)
            elif count > 1:
                tiles += self._prefill_tiles(step, row, starts[row], count, lengths[row], policy)
        for policy, rows in decodes.items():
            tiles.append(self._decode_tile(step, rows, starts, lengths, policy))
        return tiles

    def _slots(self, table: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        """Slots of bookkeeping indices [n, k], by the block tables [n, blocks] of n rows."""
        blocks = table.long().gather(1, index // self.block_size)
        return blocks * self.block_size + index % self.block_size

    def _prefill_tiles(
        self,
        step: CommonAttentionMetadata,
        row: int,
        start: int,
        count: int,
        length: int,
        policy: StreamPolicy,
    ) -> list[Tile]:
        """The full runs of a prefill chunk in one tile, the remainder in another.

        Args:
            start: the chunk's first token in the step.
            count: its tokens.
            length: bookkeeping length of the row, the chunk included.
        """
        runs, rest = divmod(count, RUN_QUERIES)
        first = length - count
        tiles = []
        if runs:
            tiles.append(self._runs(step, row, start, first, runs, RUN_QUERIES, policy))
        if rest:
            done = runs * RUN_QUERIES
            tiles.append(self._runs(step, row, start + done, first + done, 1, rest, policy))
        return tiles

    def _runs(
        self,
        step: CommonAttentionMetadata,
        row: int,
        start: int,
        first: int,
        runs: int,
        queries: int,
        policy: StreamPolicy,
    ) -> Tile:
        """A tile of ``runs`` runs of ``queries`` queries, from bookkeeping index ``first`` on."""
        device = step.block_table_tensor.device
        window = policy.window_tokens
        table = step.block_table_tensor[row : row + 1].expand(runs, -1)
        offset = torch.arange(runs * queries, device=device).view(runs, queries)
        query = first + offset
        # A run reads from the window of its first query to its last query.
        span = min(window - 1, first + (runs - 1) * queries) + queries
        index = query[:, -1:] - torch.arange(span - 1, -1, -1, device=device)
        distance = query[:, :, None] - index[:, None, :]
        distance.masked_fill_((index < 0)[:, None], -1)
        tile = Tile(start + offset, self._slots(table, index.clamp(min=0)), distance, window)
        if policy.sink_tokens and first + runs * queries - 1 >= window:
            assert step.positions is not None
            self._add_sinks(tile, table, query, step.positions[tile.queries], policy)
        return tile

    def _decode_tile(
        self,
        step: CommonAttentionMetadata,
        rows: list[int],
        starts: list[int],
        lengths: list[int],
        policy: StreamPolicy,
    ) -> Tile:
        """A tile of the single queries of ``rows``; other arguments as in ``cut``."""
        device = step.block_table_tensor.device
        every_row = len(rows) == step.num_reqs
        table = step.block_table_tensor[: step.num_reqs]
        table = table if every_row else table[torch.tensor(rows, device=device)]
        last = torch.tensor([lengths[r] - 1 for r in rows], device=device)
        token = torch.tensor([starts[r] for r in rows], device=device)
        window = policy.window_tokens
        low = (last - (window - 1)).clamp(min=0)
        span = min(window, max(lengths[r] for r in rows))
        index = low[:, None] + torch.arange(span, device=device)
        # Shorter rows are padded with keys of their future, which `distance` masks.
        distance = last[:, None, None] - index[:, None, :]
        slots = self._slots(table, torch.minimum(index, last[:, None]))
        tile = Tile(token[:, None], slots, distance, window)
        if policy.sink_tokens and max(lengths[r] for r in rows) - 1 >= window:
            assert step.positions is not None
            self._add_sinks(tile, table, last[:, None], step.positions[tile.queries], policy)
        return tile

    def _add_sinks(
        self,
        tile: Tile,
        table: torch.Tensor,
        query: torch.Tensor,
        positions: torch.Tensor,
        policy: StreamPolicy,
    ) -> None:
        """The sink part of a tile: ``query`` and ``positions`` are int64 [n, q].

        A sink that still lies in the window of a query is read there, at its own distance.
        """
        sink = torch.arange(policy.sink_tokens, device=table.device)
        # A stream that is shorter than its sinks has no blocks for all of them, and sees none.
        existing = torch.minimum(sink[None], query[:, -1:])
        tile.sink_slots = self._slots(table, existing)
        tile.sink_visible = sink <= query[:, :, None] - policy.window_tokens
        position = positions.clamp(max=policy.sees_everything_below - 1)
        tile.evicted = positions - position
        tile.sink_distance = position[:, :, None] - sink
