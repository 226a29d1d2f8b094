"""The dashboard's panels, top to bottom. Panels are data; ``dashboard.py`` makes Grafana's JSON.

A metric has two names. vLLM's server exports ``vllm_sink_streams`` and ``vllm:…``; Ray adds the
prefix ``ray_`` and turns the colon into ``_``. A selector on ``__name__`` matches both.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

#: The dashboard's variables.
FILTER = 'model_name=~"$model", engine=~"$engine"'


def ours(name: str, labels: str = "") -> str:
    """A selector of a ``vllm_sink_*`` metric."""
    return f'{{__name__=~"(ray_)?vllm_sink_{name}", {FILTER}{", " + labels if labels else ""}}}'


def vllms(name: str) -> str:
    """A selector of one of vLLM's own metrics."""
    return f'{{__name__=~"vllm:{name}|ray_vllm_{name}", {FILTER}}}'


def rate(selector: str, by: str = "") -> str:
    """Its increase per second, summed over engines."""
    return f"sum{f' by ({by})' if by else ''} (rate({selector}[$__rate_interval]))"


def seldom(expr: str) -> str:
    """An expression that is 0 without data: Ray exports a counter only after its first event."""
    return f"({expr} or vector(0))"


def happened(selector: str, within: str) -> str:
    """How often something happened lately, the first time included (``increase`` misses it)."""
    before = seldom(f"sum({selector} offset {within})")
    return seldom(f"clamp_min(sum({selector}) - {before}, 0)")


def quantile(q: float, buckets: str) -> str:
    """A quantile over all engines."""
    return f"histogram_quantile({q}, {rate(buckets, 'le')})"


@dataclass(frozen=True)
class Query:
    """One line of a panel.

    Attributes:
        expr: PromQL.
        legend: its name, with Grafana's ``{{label}}``.
    """

    expr: str
    legend: str


@dataclass(frozen=True)
class Panel:
    """One panel.

    Attributes:
        title: what it shows.
        help: how to read it.
        queries: its lines.
        unit: of Grafana's unit names.
        kind: ``stat`` is one number.
        stacked: lines add up.
        warn: the value from which a stat is orange; ``alarm``: red.
    """

    title: str
    help: str
    queries: tuple[Query, ...]
    unit: str = "short"
    kind: Literal["stat", "graph"] = "graph"
    stacked: bool = False
    warn: float | None = None
    alarm: float | None = None


WINDOW_BLOCKS = ours("blocks", 'kind="window"')
FREE_BLOCKS = ours("blocks", 'kind="free"')

HEALTH = (
    Panel(
        "Live streams",
        "Requests that hold KV blocks now.",
        (Query(f"sum({ours('streams')})", "streams"),),
        kind="stat",
    ),
    Panel(
        "Past the native context",
        "Live streams longer than what the model has learned: what only the policy can serve.",
        (Query(f"sum({ours('streams_past_context')})", "streams"),),
        kind="stat",
    ),
    Panel(
        "Preempted in 15 minutes",
        "Endless streams that lost their blocks. Admission prevents it: there is a reason.",
        (Query(happened(ours("preemptions_total"), "15m"), "streams"),),
        kind="stat",
        alarm=1,
    ),
    Panel(
        "Refused in 15 minutes",
        "Requests told to come later: streams without room (429), or after a long wait (503).",
        (Query(happened(ours("admissions_refused_total"), "15m"), "requests"),),
        kind="stat",
        warn=1,
    ),
    Panel(
        "Policy",
        "What the servers run: policy, sinks, window, attention provider.",
        (
            Query(
                "count by (policy, sink_tokens, window_tokens, attention_provider) "
                f"({ours('info')})",
                "{{policy}} S={{sink_tokens}} W={{window_tokens}} {{attention_provider}}",
            ),
        ),
        kind="stat",
    ),
    Panel(
        "Time between tokens",
        "Does not grow with a stream's length. If it drifts at the same batch, ask why.",
        (
            Query(quantile(0.5, vllms("inter_token_latency_seconds_bucket")), "median"),
            Query(quantile(0.99, vllms("inter_token_latency_seconds_bucket")), "99 %"),
        ),
        unit="s",
    ),
    Panel(
        "Live streams, by length",
        "All, and those past the native context.",
        (
            Query(f"sum({ours('streams')})", "live"),
            Query(f"sum({ours('streams_past_context')})", "past the context"),
        ),
    ),
    Panel(
        "Length of streams when they ended",
        "Prompt and output, in tokens.",
        (
            Query(quantile(0.5, ours("stream_tokens_bucket")), "median"),
            Query(quantile(0.95, ours("stream_tokens_bucket")), "95 %"),
        ),
    ),
    Panel(
        "Age of streams when they ended",
        "From their arrival.",
        (
            Query(quantile(0.5, ours("stream_age_seconds_bucket")), "median"),
            Query(quantile(0.95, ours("stream_age_seconds_bucket")), "95 %"),
        ),
        unit="s",
    ),
)

CHURN = (
    Panel(
        "Blocks recycled",
        "KV blocks that left the middle of a live stream: the cache's churn.",
        (Query(rate(ours("blocks_recycled_total"), "engine"), "engine {{engine}}"),),
        unit="ops",
    ),
    Panel(
        "Tokens evicted",
        "Tokens that fell out between sinks and window.",
        (Query(rate(ours("tokens_evicted_total"), "engine"), "engine {{engine}}"),),
        unit="ops",
    ),
    Panel(
        "Time in the window",
        "How long a token stays visible at the present churn: blocks in windows over churn.",
        (
            Query(
                f"sum({WINDOW_BLOCKS}) / clamp_min({rate(ours('blocks_recycled_total'))}, 0.001)",
                "seconds",
            ),
        ),
        unit="s",
    ),
    Panel(
        "Prompt and generated tokens",
        "Why it churns: long prompts push their own beginnings out; output adds a token a step.",
        (
            Query(rate(vllms("prompt_tokens_total")), "prompt"),
            Query(rate(vllms("generation_tokens_total")), "generated"),
        ),
        unit="ops",
    ),
    Panel(
        "Prefix hits, by reach",
        "sinks: only the pinned start was still cached, the rest was computed again.",
        (Query(rate(ours("prefix_hits_total"), "reach"), "{{reach}}"),),
        unit="ops",
    ),
    Panel(
        "Preemptions",
        "Recomputed streams churn twice.",
        (Query(seldom(rate(ours("preemptions_total"))), "preemptions"),),
        unit="ops",
    ),
    Panel(
        "Rollovers",
        "How often a stream's bookkeeping was shortened.",
        (Query(seldom(rate(ours("rollovers_total"))), "rollovers"),),
        unit="ops",
    ),
    Panel(
        "Rollover duration",
        "Mean; all streams wait for it.",
        (
            Query(
                f"{seldom(rate(ours('rollover_seconds_sum')))} / "
                f"clamp_min({seldom(rate(ours('rollover_seconds_count')))}, 0.000001)",
                "mean",
            ),
        ),
        unit="s",
    ),
    Panel(
        "Window occupancy",
        "How full the windows of live streams are; low means that most streams are short.",
        (Query(f"avg by (engine) ({ours('window_occupancy_ratio')})", "engine {{engine}}"),),
        unit="percentunit",
    ),
)

USERS = (
    Panel(
        "Live streams by tenant",
        "Off unless the server runs with --sink-tenant-label; bounded by --sink-max-tenants.",
        (Query(f"sum by (tenant) ({ours('tenant_streams')})", "{{tenant}}"),),
        stacked=True,
    ),
    Panel(
        "Blocks by tenant",
        "Blocks that a tenant's streams hold; a shared one counts for each.",
        (Query(f"sum by (tenant) ({ours('tenant_blocks')})", "{{tenant}}"),),
        stacked=True,
    ),
    Panel(
        "Tokens by tenant",
        "Tokens computed, prompt and output.",
        (Query(rate(ours("tenant_tokens_total"), "tenant"), "{{tenant}}"),),
        unit="ops",
        stacked=True,
    ),
    Panel(
        "Evicted tokens by tenant",
        "Whose streams are long.",
        (Query(rate(ours("tenant_tokens_evicted_total"), "tenant"), "{{tenant}}"),),
        unit="ops",
        stacked=True,
    ),
)

LIMITS = (
    Panel(
        "Blocks, by what they are held as",
        "sink: pinned. window: rolling. free: the pool's, cached prefixes among them.",
        (Query(f"sum by (kind) ({ours('blocks')})", "{{kind}}"),),
        stacked=True,
    ),
    Panel(
        "Blocks promised against blocks free",
        "Promised: to live streams that still fill their windows. New streams need the difference.",
        (
            Query(f"sum({FREE_BLOCKS})", "free"),
            Query(f"sum({ours('reserved_blocks')})", "promised"),
        ),
    ),
    Panel(
        "Streams against what fits",
        "What fits: streams with the engine's own number of sinks in the whole pool.",
        (
            Query(f"sum({ours('streams')})", "live"),
            Query(f"sum({ours('promised_streams')})", "endless"),
            Query(f"sum({ours('streams_that_fit')})", "endless ones that fit"),
        ),
    ),
    Panel(
        "Requests running and waiting",
        "vLLM's own queue.",
        (
            Query(f"sum({vllms('num_requests_running')})", "running"),
            Query(f"sum({vllms('num_requests_waiting')})", "waiting"),
        ),
    ),
    Panel(
        "Admissions",
        "Let in, told to come later, and ended since their clients did not read.",
        (
            Query(rate(ours("admissions_total")), "let in"),
            Query(seldom(rate(ours("admissions_refused_total"))), "refused"),
            Query(seldom(rate(ours("streams_ended_unsent_total"))), "ended unsent"),
        ),
        unit="ops",
    ),
    Panel(
        "Answers that wait for their clients",
        "Memory of the API server. A stream of which --sink-max-unsent-mib waits is ended.",
        (Query(f"sum({ours('unsent_bytes')})", "all"),),
        unit="bytes",
    ),
    Panel(
        "Host memory of the engine core",
        "Bounded by --max-model-len; steady growth is a leak.",
        (Query(f"max by (engine) ({ours('engine_resident_bytes')})", "engine {{engine}}"),),
        unit="bytes",
    ),
)

#: The dashboard's questions, in the order in which an operator asks them.
ROWS: tuple[tuple[str, tuple[Panel, ...]], ...] = (
    ("Are streams healthy?", HEALTH),
    ("Is the cache churning, and why?", CHURN),
    ("Who uses it?", USERS),
    ("Is it near a limit?", LIMITS),
)
