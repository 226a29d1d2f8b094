"""Statistics of streams: taken in the engine core, sent with vLLM's own, exported to Prometheus.

::

    engine core   cache counters ──┐
                  live streams  ───┴─> collector ── StreamStats ── SchedulerStats.sink_stats ──┐
    front end     /metrics <── export <── record() <───────────────────────────────────────────┘
                  log line <── log_line <──┘
"""
