"""Statistics of streams: taken in the engine core, sent with vLLM's own, exported to Prometheus.

::

    engine core   cache counters ──┐
                  live streams  ───┴─> collector ── StreamStats ── SchedulerStats.sink_stats ──┐
    front end     /metrics <── export <── record() <───────────────────────────────────────────┘
                  log line <── logline <──┘
"""

from __future__ import annotations


def install() -> None:
    """Count and export in this process, from now on; engines without a policy pass through."""
    from vllm.v1.engine.async_llm import AsyncLLM
    from vllm.v1.engine.llm_engine import LLMEngine

    from vllm_sink import compat
    from vllm_sink.metrics import stat_loggers
    from vllm_sink.metrics.messages import StreamStats

    compat.add_scheduler_stats(StreamStats)
    compat.wrap(AsyncLLM, "__init__", stat_loggers.with_stream_metrics)
    compat.wrap(LLMEngine, "__init__", stat_loggers.with_stream_metrics)
