"""What a front end counts by itself, beside what the engine core sends."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class FrontEndCounts:
    """Of this process.

    Attributes:
        most_unsent_bytes: that a stream may leave unsent.
        unsent_bytes: of answers that wait for their clients, when they were last summed up.
        summed: when that was, by the monotonic clock.
        ended_unsent: streams that were ended so far because too much of them waited.
    """

    most_unsent_bytes: int = 0
    unsent_bytes: int = 0
    summed: float = 0.0
    ended_unsent: int = 0


FRONT_END = FrontEndCounts()
