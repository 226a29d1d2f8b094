"""Blocks reserved for streams: updated as streams come and go, never summed in a step.

A stream that has filled its window does not grow, so its reservation is what it can hold then.
Only computing a long prompt takes more, and all streams together compute no more tokens than are
in flight.

Invariants, at any time: ``(blocks, prompt_excess) == summed()``, ``len(held) <= max_streams``, and
``blocks <= max_blocks`` unless one stream alone has more.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from vllm_sink.policy import cdiv


@dataclass(frozen=True)
class Reservation:
    """What a stream may need.

    Attributes:
        blocks: maximum that it holds while it decodes.
        prompt_excess: tokens of its prompt beyond its window; computing them takes more blocks.
    """

    blocks: int
    prompt_excess: int = 0


@dataclass
class StreamReservations:
    """The reservations of one engine.

    Attributes:
        pool_blocks: blocks of the whole pool.
        share: fraction of the pool that streams may reserve.
        max_streams: maximum of concurrent streams.
        in_flight_tokens: maximum of tokens scheduled and not settled.
        block_size: tokens in a block.
        held: reservations by request id.
        blocks: sum over ``held``.
        prompt_excess: likewise.
    """

    pool_blocks: int
    share: float
    max_streams: int
    in_flight_tokens: int
    block_size: int
    held: dict[str, Reservation] = field(default_factory=dict)
    blocks: int = 0
    prompt_excess: int = 0

    @property
    def max_blocks(self) -> int:
        """Blocks that streams may reserve."""
        return int(self.share * self.pool_blocks)

    @property
    def free_blocks(self) -> int:
        """Blocks that streams may still reserve."""
        return max(0, self.max_blocks - self.blocks)

    @property
    def consistent(self) -> bool:
        """Whether the running sums equal the slow ones."""
        return (self.blocks, self.prompt_excess) == self.summed()

    def clear(self) -> None:
        """Forget every reservation."""
        self.held.clear()
        self.blocks = self.prompt_excess = 0

    def fits(self, reservation: Reservation) -> bool:
        """Whether this reservation can be added. The first one always can."""
        if not self.held:
            return True
        excess = min(self.prompt_excess + reservation.prompt_excess, self.in_flight_tokens)
        blocks = self.blocks + reservation.blocks
        return (
            len(self.held) < self.max_streams
            and blocks <= self.max_blocks
            and blocks + cdiv(excess, self.block_size) <= self.pool_blocks
        )

    def reserve(self, request_id: str, reservation: Reservation) -> None:
        """Reserve a stream's blocks."""
        self.release(request_id)
        self.held[request_id] = reservation
        self.blocks += reservation.blocks
        self.prompt_excess += reservation.prompt_excess

    def release(self, request_id: str) -> None:
        """Drop a stream's reservation, if it has one."""
        reservation = self.held.pop(request_id, None)
        if reservation is not None:
            self.blocks -= reservation.blocks
            self.prompt_excess -= reservation.prompt_excess

    def streams_that_fit(self, reservation: Reservation) -> int:
        """How many streams with this reservation fit."""
        return streams_that_fit(self.pool_blocks, self.share, self.max_streams, reservation.blocks)

    def summed(self) -> tuple[int, int]:
        """The slow sums that ``blocks`` and ``prompt_excess`` must equal."""
        reservations = self.held.values()
        return sum(r.blocks for r in reservations), sum(r.prompt_excess for r in reservations)


def streams_that_fit(
    pool_blocks: int, share: float, max_streams: int, blocks_per_stream: int
) -> int:
    """How many streams fit; at least one if the pool holds it, whatever the share.

    Args:
        pool_blocks: blocks of the pool, without vLLM's null block.
        share: fraction of them that streams may reserve.
        max_streams: maximum of concurrent streams.
        blocks_per_stream: reservation of each stream.
    """
    if pool_blocks < blocks_per_stream:
        return 0
    return max(1, min(max_streams, int(share * pool_blocks) // blocks_per_stream))
