"""The front end's side: a stat logger of vLLM that puts the messages on ``/metrics``.

In a server of several API processes each process gets some of the messages: counters and histograms
add up over them, and of a gauge the most recent value counts, as with vLLM's own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from prometheus_client import REGISTRY, Counter, Gauge, Histogram
from vllm.v1.metrics.loggers import AggregateStatLoggerBase

from vllm_sink import __version__, compat
from vllm_sink.config.kv_policy import policy_of
from vllm_sink.metrics.definitions import LABELS, METRICS, PREFIX, Metric
from vllm_sink.metrics.front_end import FRONT_END
from vllm_sink.metrics.log_line import LogLine
from vllm_sink.metrics.messages import StreamStats

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.v1.metrics.stats import SchedulerStats


#: The last message of each engine that this process reads, for the autoscaler.
LAST: dict[int, StreamStats] = {}


class SinkStatLogger(AggregateStatLoggerBase):
    """Exports with prometheus-client (vLLM: ``PrometheusStatLogger``).

    Args:
        vllm_config: of the engines.
        engine_indexes: the engines that this front end reads.
    """

    _gauge: Any = Gauge
    _counter: Any = Counter
    _histogram: Any = Histogram

    def __init__(self, vllm_config: VllmConfig, engine_indexes: list[int] | None = None) -> None:
        kv_policy = policy_of(vllm_config)
        assert kv_policy is not None, "this logger belongs to engines with a policy"
        engines = engine_indexes or [0]
        self._forget_earlier()
        self._ended = FRONT_END.ended_unsent
        self._line = LogLine()
        self._line.install()
        self._metrics = {m.name: self._make(m) for m in METRICS.values()}
        self._labels = {i: (vllm_config.model_config.served_model_name, str(i)) for i in engines}
        for labels in self._labels.values():
            info = (
                kv_policy.name,
                kv_policy.sink_tokens,
                kv_policy.window,
                kv_policy.native,
                vllm_config.cache_config.block_size,
                kv_policy.provider,
                __version__,
            )
            self._metrics["info"].labels(*labels, *map(str, info)).set(1)
            self._metrics["native_context_tokens"].labels(*labels).set(kv_policy.native)
            self._start_at_zero(labels)
        self._cache = vllm_config.cache_config

    @staticmethod
    def _forget_earlier() -> None:
        """Drop an earlier engine's collectors, as vLLM does with its own."""
        for collector in list(REGISTRY._collector_to_names):
            if getattr(collector, "_name", "").startswith(PREFIX):
                REGISTRY.unregister(collector)

    def _make(self, metric: Metric) -> Any:
        common: dict[str, Any] = {
            "name": metric.full_name,
            "documentation": metric.help,
            "labelnames": [*LABELS, *metric.labels],
        }
        if metric.kind == "gauge":
            mode = "livesum" if metric.of_process else "mostrecent"
            return self._gauge(**common, multiprocess_mode=mode)
        if metric.kind == "histogram":
            return self._histogram(**common, buckets=list(metric.buckets))
        return self._counter(**common)

    def _start_at_zero(self, labels: tuple[str, str]) -> None:
        """Make every series but the tenants': a rate needs a value before the first event."""
        for metric in METRICS.values():
            if metric.kind != "gauge" and not metric.labels:
                self._metrics[metric.name].labels(*labels)
        for reach in ("sinks", "window"):
            self._metrics["prefix_hits"].labels(*labels, reach)
        for reason in ("streams", "timeout"):
            self._metrics["admissions_refused"].labels(*labels, reason)

    def record(
        self,
        scheduler_stats: SchedulerStats | None,
        iteration_stats: Any,
        mm_cache_stats: Any = None,
        engine_idx: int = 0,
    ) -> None:
        """Record a step's message; most steps have none."""
        if scheduler_stats is None:
            return
        stats: StreamStats | None = compat.take_stats(scheduler_stats, StreamStats)
        if stats is None or engine_idx not in self._labels:
            return
        LAST[engine_idx] = stats
        self._add_front_end()
        self._line.record(engine_idx, stats)
        labels = self._labels[engine_idx]
        self._set_levels(stats, labels)
        self._add_counts(stats, labels)
        self._add_tenants(stats, labels)

    def _add_front_end(self) -> None:
        """Export the front end's own counts under the first engine's labels."""
        labels = next(iter(self._labels.values()))
        self._metrics["unsent_bytes"].labels(*labels).set(FRONT_END.unsent_bytes)
        ended, self._ended = FRONT_END.ended_unsent - self._ended, FRONT_END.ended_unsent
        if ended:
            self._metrics["streams_ended_unsent"].labels(*labels).inc(ended)

    def _set_levels(self, stats: StreamStats, labels: tuple[str, str]) -> None:
        levels = {
            "streams": stats.streams,
            "streams_past_context": stats.past_context,
            "streams_that_fit": stats.streams_that_fit,
            "promised_streams": stats.promised_streams,
            "reserved_blocks": stats.reserved_blocks,
            "window_occupancy_ratio": stats.window_occupancy,
            "engine_resident_bytes": stats.resident_bytes,
        }
        for name, value in levels.items():
            self._metrics[name].labels(*labels).set(value)
        blocks = {
            "sink": stats.sink_blocks,
            "window": stats.window_blocks,
            "free": stats.free_blocks,
        }
        for kind, value in blocks.items():
            self._metrics["blocks"].labels(*labels, kind).set(value)

    def _add_counts(self, stats: StreamStats, labels: tuple[str, str]) -> None:
        counts = {
            "admissions": stats.admitted,
            "preemptions": stats.preemptions,
            "blocks_recycled": stats.recycled_blocks,
            "tokens_evicted": stats.evicted_tokens,
            "rollovers": len(stats.rollovers),
        }
        for name, value in counts.items():
            if value:
                self._metrics[name].labels(*labels).inc(value)
        refused = {"streams": stats.refused_streams, "timeout": stats.refused_waiting}
        for reason, value in refused.items():
            if value:
                self._metrics["admissions_refused"].labels(*labels, reason).inc(value)
        hits = {"sinks": stats.hits_within_sinks, "window": stats.hits_past_sinks}
        for reach, value in hits.items():
            if value:
                self._metrics["prefix_hits"].labels(*labels, reach).inc(value)
        for seconds in stats.rollovers:
            self._metrics["rollover_seconds"].labels(*labels).observe(seconds)
        for tokens, age in stats.ended:
            self._metrics["stream_tokens"].labels(*labels).observe(tokens)
            self._metrics["stream_age_seconds"].labels(*labels).observe(age)

    def _add_tenants(self, stats: StreamStats, labels: tuple[str, str]) -> None:
        for name, tenant in stats.tenants.items():
            self._metrics["tenant_streams"].labels(*labels, name).set(tenant.streams)
            self._metrics["tenant_blocks"].labels(*labels, name).set(tenant.blocks)
            self._metrics["tenant_tokens"].labels(*labels, name).inc(tenant.computed_tokens)
            self._metrics["tenant_tokens_evicted"].labels(*labels, name).inc(tenant.evicted_tokens)

    def log(self) -> None:
        """vLLM calls it once an interval, before it logs its line."""
        self._line.new_interval()

    def log_engine_initialized(self) -> None:
        """Export idle engines with whole pools: the first step may be hours away.

        vLLM has summed their pools by now (``MPClient``), null blocks included.
        """
        pool = (self._cache.num_gpu_blocks or 0) // len(self._labels) - 1
        for labels in self._labels.values():
            for name in ("streams", "streams_past_context", "promised_streams", "reserved_blocks"):
                self._metrics[name].labels(*labels).set(0)
            for kind, value in (("sink", 0), ("window", 0), ("free", pool)):
                self._metrics["blocks"].labels(*labels, kind).set(value)


def ray_logger() -> type[SinkStatLogger]:
    """The same through Ray's metrics, which Ray exports as ``ray_vllm_sink_*``."""
    from vllm.v1.metrics import ray_wrappers

    class RaySinkStatLogger(SinkStatLogger):
        _gauge = ray_wrappers.RayGaugeWrapper
        _counter = ray_wrappers.RayCounterWrapper
        _histogram = ray_wrappers.RayHistogramWrapper

    return RaySinkStatLogger
