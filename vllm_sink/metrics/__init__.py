"""Statistics of streams: taken in the engine core, sent with vLLM's own, exported to Prometheus.

::

    engine core   cache counters ──┐
                  live streams  ───┴─> collector ── StreamStats ── SchedulerStats.sink_stats ──┐
    front end     /metrics <── export <── record() <───────────────────────────────────────────┘
                  log line <── logline <──┘
"""

from __future__ import annotations

from typing import Any


def install(vllm_config: Any) -> None:
    """Count and export in this process, from now on; engines without a policy pass through.

    Raises:
        PolicyError: ``sink_metrics`` names something that is not allowed.
    """
    from vllm.v1.engine.async_llm import AsyncLLM
    from vllm.v1.engine.llm_engine import LLMEngine

    from vllm_sink import compat
    from vllm_sink.metrics import hook
    from vllm_sink.metrics.config import MetricsConfig
    from vllm_sink.metrics.stats import StreamStats

    MetricsConfig.from_config(vllm_config.additional_config)
    compat.add_scheduler_stats(StreamStats)
    compat.wrap(AsyncLLM, "__init__", hook.with_stream_metrics)
    compat.wrap(LLMEngine, "__init__", hook.with_stream_metrics)
