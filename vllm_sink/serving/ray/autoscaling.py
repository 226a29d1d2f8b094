"""How many replicas: by their streams and what is promised to them, not by requests a second.

A request rate says nothing here: one request may run for a week. A replica is full when its pool
can promise no further stream its blocks, and then requests wait however few they are.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ray.serve.config import AutoscalingContext

    from vllm_sink.metrics.messages import StreamStats

#: The name under which a replica reports its load to Ray Serve's controller.
LOAD = "sink_load"
STREAMS = "sink_streams"
RESERVED = "sink_reserved_blocks"


def report(stats: StreamStats | None) -> dict[str, float]:
    """What a replica tells the controller.

    Args:
        stats: the engine's last message; None before its first.
    """
    if stats is None:
        return {LOAD: 0.0, STREAMS: 0.0, RESERVED: 0.0}
    held = stats.sink_blocks + stats.window_blocks
    pool = held + stats.free_blocks
    promised = (held + stats.reserved_blocks) / pool if pool else 0.0
    return {
        LOAD: promised,
        STREAMS: float(stats.streams),
        RESERVED: float(stats.reserved_blocks),
    }


class StreamLoad:
    """Ray Serve's autoscaling policy: so many replicas that each is filled to ``target_load``.

    Args:
        target_load: of a pool's blocks, the part to be held or promised; 0 to 1.
    """

    def __init__(self, target_load: float = 0.8) -> None:
        self.target_load = target_load

    def __call__(self, context: AutoscalingContext) -> tuple[int, dict[str, Any]]:
        """The number of replicas that is wanted; Ray applies bounds and delays."""
        loads = (context.aggregated_metrics or {}).get(LOAD, {})
        running = [loads[r] for r in context.running_replicas if r in loads]
        if not running:
            return context.target_num_replicas, {}
        # One that has not reported yet was started since the others are full: it counts as empty.
        wanted = math.ceil(sum(running) / self.target_load - 1e-9)
        if context.total_queued_requests > 0:
            wanted = max(wanted, 1)
        return max(wanted, min(1, context.target_num_replicas)), {}
