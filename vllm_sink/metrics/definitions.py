"""Every metric this project exports: its kind, name, help, further labels and buckets.

One table: the exporter makes its collectors from it, and the tests check the dashboard and the
rules against it. All names begin ``vllm_sink_`` and have no colon, which Ray does not allow; Ray
puts ``ray_`` in front. Counters are named without ``_total``, as vLLM's own are: prometheus-client
and Ray both add it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["gauge", "counter", "histogram"]

#: Labels of every metric, as vLLM has them.
LABELS = ("model_name", "engine")

PREFIX = "vllm_sink_"

#: 10 to 10^7 tokens, 1-2-5.
TOKEN_BUCKETS = (*(float(m * 10**e) for e in range(1, 7) for m in (1, 2, 5)), 1e7)

#: A tenth of a second to 10^7 seconds (116 days), 1-3-10.
AGE_BUCKETS = (*(round(m * 10.0**e, 1) for e in range(-1, 7) for m in (1, 3)), 1e7)

#: 0.1 ms to 10 s.
ROLLOVER_BUCKETS = (0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)


@dataclass(frozen=True)
class Metric:
    """One metric.

    Attributes:
        kind: Prometheus's type.
        name: without the prefix, and without ``_total``.
        help: shown in ``/metrics``.
        labels: beyond ``model_name`` and ``engine``.
        buckets: upper bounds, for a histogram.
        of_process: a gauge of each front-end process; they are summed.
    """

    kind: Kind
    name: str
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()
    of_process: bool = False

    @property
    def full_name(self) -> str:
        return PREFIX + self.name


INFO_LABELS = (
    "policy",
    "sink_tokens",
    "window_tokens",
    "native_context",
    "block_size",
    "attention_provider",
    "version",
)

METRICS: dict[str, Metric] = {
    m.name: m
    for m in (
        Metric("gauge", "info", "The KV policy and its provider; always 1.", INFO_LABELS),
        Metric("gauge", "streams", "Live streams: requests that hold KV blocks."),
        Metric("gauge", "streams_past_context", "Live streams longer than the native context."),
        Metric("gauge", "promised_streams", "Endless requests, whose blocks are reserved."),
        Metric("gauge", "streams_that_fit", "Endless requests with the engine's own S that fit."),
        Metric("gauge", "native_context_tokens", "Positions that the model has learned."),
        Metric(
            "gauge",
            "blocks",
            "KV blocks by use: sink (pinned), window, or free. Sums to the pool.",
            ("kind",),
        ),
        Metric("gauge", "reserved_blocks", "KV blocks reserved for streams, not held yet."),
        Metric(
            "gauge",
            "window_occupancy_ratio",
            "Tokens in the windows of live streams over what these windows hold.",
        ),
        Metric(
            "gauge", "engine_resident_bytes", "Host memory of the engine core's process, resident."
        ),
        Metric(
            "gauge",
            "unsent_bytes",
            "Memory of answers that their clients have not read, or do not stream.",
            of_process=True,
        ),
        Metric(
            "counter",
            "streams_ended_unsent",
            "Streams ended because more than --sink-max-unsent-mib of their answer was unsent.",
        ),
        Metric("counter", "admissions", "Streams admitted; again after a preemption."),
        Metric(
            "counter",
            "admissions_refused",
            "Requests refused: streams that did not fit, and requests that waited too long.",
            ("reason",),
        ),
        Metric(
            "counter",
            "preemptions",
            "Endless streams that lost their blocks; vLLM's own counter counts other requests.",
        ),
        Metric("counter", "blocks_recycled", "KV blocks that left the middle of a live stream."),
        Metric("counter", "tokens_evicted", "Tokens that fell out between sinks and window."),
        Metric(
            "counter",
            "prefix_hits",
            "Admissions with a prefix hit, by its reach: only the sinks, or also the window.",
            ("reach",),
        ),
        Metric("counter", "rollovers", "Times that a stream's bookkeeping was shortened."),
        Metric(
            "histogram",
            "rollover_seconds",
            "How long a rollover took.",
            buckets=ROLLOVER_BUCKETS,
        ),
        Metric(
            "histogram",
            "stream_tokens",
            "Length of a stream when it ended, prompt and output.",
            buckets=TOKEN_BUCKETS,
        ),
        Metric(
            "histogram",
            "stream_age_seconds",
            "Age of a stream when it ended, from its arrival.",
            buckets=AGE_BUCKETS,
        ),
        Metric("gauge", "tenant_streams", "Live streams of a tenant.", ("tenant",)),
        Metric(
            "gauge",
            "tenant_blocks",
            "KV blocks that a tenant's streams hold; a shared one counts for each stream.",
            ("tenant",),
        ),
        Metric("counter", "tenant_tokens", "Tokens computed for a tenant.", ("tenant",)),
        Metric("counter", "tenant_tokens_evicted", "Tokens evicted for a tenant.", ("tenant",)),
    )
}
