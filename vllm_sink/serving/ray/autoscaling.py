"""Autoscaling by the KV blocks that streams hold or are promised, not by requests a second.

A request rate says nothing here: one request may run for a week. A replica is full when its pool
has no blocks left to promise to another stream; then requests wait, however few they are.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ray.serve.config import AutoscalingContext

    from vllm_sink.metrics.messages import StreamStats

#: Names of the metrics that a replica reports to Ray Serve's controller: the part of its blocks
#: that is held or promised, its live streams, the blocks promised to them.
LOAD = "sink_load"
STREAMS = "sink_streams"
RESERVED = "sink_reserved_blocks"


def report(stats: StreamStats | None) -> dict[str, float]:
    """The load of a replica, for the controller.

    Args:
        stats: the engine's latest statistics; None before the first.

    Returns:
        ``LOAD`` as a part of the pool, 0 to 1; ``STREAMS``; ``RESERVED`` in blocks.
    """
    if stats is None:
        return {LOAD: 0.0, STREAMS: 0.0, RESERVED: 0.0}
    held_blocks = stats.sink_blocks + stats.window_blocks
    pool_blocks = held_blocks + stats.free_blocks
    load = (held_blocks + stats.reserved_blocks) / pool_blocks if pool_blocks else 0.0
    return {
        LOAD: load,
        STREAMS: float(stats.streams),
        RESERVED: float(stats.reserved_blocks),
    }


class StreamLoad:
    """Ray Serve's autoscaling policy: as many replicas as fill each to ``target_load``.

    Args:
        target_load: the part of a pool's blocks that is held or promised; 0 to 1.
    """

    def __init__(self, target_load: float = 0.8) -> None:
        self.target_load = target_load

    def __call__(self, context: AutoscalingContext) -> tuple[int, dict[str, Any]]:
        """The wanted number of replicas; Ray applies its bounds and delays."""
        load_of = (context.aggregated_metrics or {}).get(LOAD, {})
        loads = [load_of[replica] for replica in context.running_replicas if replica in load_of]
        if not loads:
            return context.target_num_replicas, {}
        # A replica that has not reported yet was started because the others are full: load 0.
        wanted = math.ceil(sum(loads) / self.target_load - 1e-9)
        if context.total_queued_requests > 0:
            wanted = max(wanted, 1)
        return max(wanted, min(1, context.target_num_replicas)), {}
