"""Counters of the block manager, from the engine's start; read by ``vllm_sink.metrics``."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class CacheCounts:
    """Totals.

    Attributes:
        admitted: admissions; a stream that comes back after a preemption counts again.
        refused_streams: streams refused because their blocks did not fit.
        refused_waiting: requests that waited too long.
        recycled_blocks: blocks that left the middle of a live stream for the pool.
        hits_within_sinks: admissions whose prefix hit reached no further than the pinned blocks.
        hits_past_sinks: admissions whose prefix hit reached the window as well.
    """

    admitted: int = 0
    refused_streams: int = 0
    refused_waiting: int = 0
    recycled_blocks: int = 0
    hits_within_sinks: int = 0
    hits_past_sinks: int = 0
