"""What travels from the engine core to the front end, in vLLM's ``SchedulerStats``."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class TenantStats:
    """The streams of one tenant. Counters are since the last message.

    Attributes:
        streams: live streams.
        blocks: blocks that they hold; a shared one counts for each.
        computed_tokens: tokens whose keys were written.
        evicted_tokens: of these, tokens that fell out between sinks and window.
    """

    streams: int = 0
    blocks: int = 0
    computed_tokens: int = 0
    evicted_tokens: int = 0


@dataclass
class StreamStats:
    """One message: gauges as of now, counters since the last message.

    Attributes:
        streams: live streams: requests that hold blocks.
        past_context: of these, streams longer than the model's native context.
        streams_that_fit: endless requests with the engine's own ``S`` that fit.
        sink_blocks: distinct blocks that some stream pins.
        window_blocks: all other blocks in use.
        free_blocks: blocks in the pool's free queue, cached ones included.
        promised_streams: requests with a reservation.
        reserved_blocks: reserved blocks that these do not hold yet.
        window_occupancy: tokens in the windows of live streams, over what these hold; 0 to 1.
        resident_bytes: host memory of the engine core's process; 0 where unknown.
        admitted: admissions.
        refused_streams: streams refused because their blocks did not fit.
        refused_waiting: requests that waited too long.
        preemptions: streams that lost their blocks.
        recycled_blocks: blocks that left the middle of a live stream.
        evicted_tokens: tokens that fell out between sinks and window.
        hits_within_sinks: prefix hits that ended in the sinks.
        hits_past_sinks: prefix hits that reached the window as well.
        rollovers: seconds that each rollover took.
        ended: length in tokens and age in seconds of each stream that ended.
        tenants: by label; empty unless the label is on.
    """

    streams: int = 0
    past_context: int = 0
    streams_that_fit: int = 0
    sink_blocks: int = 0
    window_blocks: int = 0
    free_blocks: int = 0
    promised_streams: int = 0
    reserved_blocks: int = 0
    window_occupancy: float = 0.0
    resident_bytes: int = 0
    admitted: int = 0
    refused_streams: int = 0
    refused_waiting: int = 0
    preemptions: int = 0
    recycled_blocks: int = 0
    evicted_tokens: int = 0
    hits_within_sinks: int = 0
    hits_past_sinks: int = 0
    rollovers: list[float] = field(default_factory=list)
    ended: list[tuple[int, float]] = field(default_factory=list)
    tenants: dict[str, TenantStats] = field(default_factory=dict)
