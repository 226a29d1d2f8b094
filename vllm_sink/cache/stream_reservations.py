"""Blocks that are reserved for streams: kept as they come and go, never summed up in a step.

A stream that has filled its window grows no more, so a reservation costs what it can hold then.
Beyond it there is only what a step computes of long prompts at once, which all streams together
cannot have more of than a step has.

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
        blocks: the most that it holds while it decodes.
        prompt_excess: tokens of its prompt beyond its window; computing them takes more.
    """

    blocks: int
    prompt_excess: int = 0


@dataclass
class StreamReservations:
    """The reservations of one engine.

    Attributes:
        pool_blocks: all that there are.
        share: of them, the part that streams may have.
        max_streams: as many at once, at most.
        in_flight_tokens: the most that are computed at once.
        block_size: tokens in a block.
        held: by stream.
        blocks: of all of them together.
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
        """What streams may have."""
        return int(self.share * self.pool_blocks)

    @property
    def free_blocks(self) -> int:
        """What streams may have and have not."""
        return max(0, self.max_blocks - self.blocks)

    @property
    def consistent(self) -> bool:
        """Whether the sums that are kept are those of what is held."""
        return (self.blocks, self.prompt_excess) == self.summed()

    def clear(self) -> None:
        """Forget every reservation."""
        self.held.clear()
        self.blocks = self.prompt_excess = 0

    def fits(self, reservation: Reservation) -> bool:
        """Whether one more stream can be reserved this. The first one always can."""
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
        """Reservation a stream its blocks."""
        self.release(request_id)
        self.held[request_id] = reservation
        self.blocks += reservation.blocks
        self.prompt_excess += reservation.prompt_excess

    def release(self, request_id: str) -> None:
        """A stream has ended, or one that was reserved nothing."""
        reservation = self.held.pop(request_id, None)
        if reservation is not None:
            self.blocks -= reservation.blocks
            self.prompt_excess -= reservation.prompt_excess

    def streams_that_fit(self, reservation: Reservation) -> int:
        """How many like this one there can be."""
        return streams_that_fit(self.pool_blocks, self.share, self.max_streams, reservation.blocks)

    def summed(self) -> tuple[int, int]:
        """The slow sums that ``blocks`` and ``prompt_excess`` must equal."""
        reservations = self.held.values()
        return sum(p.blocks for p in reservations), sum(p.prompt_excess for p in reservations)


def streams_that_fit(
    pool_blocks: int, share: float, max_streams: int, blocks_per_stream: int
) -> int:
    """How many streams there can be; one, where the pool holds it, whatever its share.

    Args:
        pool_blocks: of the pool, without vLLM's null block.
        share: of them, the part that streams may have.
        max_streams: as many at once, at most.
        blocks_per_stream: what each is reserved.
    """
    if pool_blocks < blocks_per_stream:
        return 0
    return max(1, min(max_streams, int(share * pool_blocks) // blocks_per_stream))
