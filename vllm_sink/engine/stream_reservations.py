"""Blocks that are promised to streams: kept as they come and go, never summed up in a step.

A stream that has filled its window grows no more, so a promise costs what it can hold then. Beyond
it there is only what a step computes of long prompts at once, which all streams together cannot
have more of than a step has.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from vllm_sink.policy import cdiv


@dataclass(frozen=True)
class Promise:
    """What a stream may need.

    Attributes:
        blocks: the most that it holds while it decodes.
        prompt_excess: tokens of its prompt beyond its window; computing them takes more.
    """

    blocks: int
    prompt_excess: int = 0


@dataclass
class Promises:
    """The promises of one engine.

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
    held: dict[str, Promise] = field(default_factory=dict)
    blocks: int = 0
    prompt_excess: int = 0

    @property
    def most_blocks(self) -> int:
        """What streams may have."""
        return int(self.share * self.pool_blocks)

    def fits(self, promise: Promise) -> bool:
        """Whether one more stream can be promised this. The first one always can."""
        if not self.held:
            return True
        excess = min(self.prompt_excess + promise.prompt_excess, self.in_flight_tokens)
        blocks = self.blocks + promise.blocks
        return (
            len(self.held) < self.max_streams
            and blocks <= self.most_blocks
            and blocks + cdiv(excess, self.block_size) <= self.pool_blocks
        )

    def give(self, request_id: str, promise: Promise) -> None:
        """Promise a stream its blocks."""
        self.take_back(request_id)
        self.held[request_id] = promise
        self.blocks += promise.blocks
        self.prompt_excess += promise.prompt_excess

    def take_back(self, request_id: str) -> None:
        """A stream has ended, or one that was promised nothing."""
        promise = self.held.pop(request_id, None)
        if promise is not None:
            self.blocks -= promise.blocks
            self.prompt_excess -= promise.prompt_excess

    def streams_that_fit(self, promise: Promise) -> int:
        """How many like this one there can be."""
        return streams_that_fit(self.pool_blocks, self.share, self.max_streams, promise.blocks)

    def summed(self) -> tuple[int, int]:
        """The slow sums that ``blocks`` and ``prompt_excess`` must equal."""
        promises = self.held.values()
        return sum(p.blocks for p in promises), sum(p.prompt_excess for p in promises)


def streams_that_fit(
    pool_blocks: int, share: float, max_streams: int, blocks_per_stream: int
) -> int:
    """How many streams there can be; one, where the pool holds it, whatever its share.

    Args:
        pool_blocks: of the pool, without vLLM's null block.
        share: of them, the part that streams may have.
        max_streams: as many at once, at most.
        blocks_per_stream: what each is promised.
    """
    if pool_blocks < blocks_per_stream:
        return 0
    return max(1, min(max_streams, int(share * pool_blocks) // blocks_per_stream))
