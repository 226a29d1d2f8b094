"""Counts of the front end itself, beside those of the engine core."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class FrontEndCounts:
    """Counts of this process.

    Attributes:
        most_unsent_bytes: maximum that a stream may leave unsent.
        unsent_bytes: of answers that wait for their clients, at the last sum.
        summed: time of the last sum, by the monotonic clock.
        ended_unsent: streams ended so far because too much of them was unsent.
    """

    most_unsent_bytes: int = 0
    unsent_bytes: int = 0
    summed: float = 0.0
    ended_unsent: int = 0


FRONT_END = FrontEndCounts()
