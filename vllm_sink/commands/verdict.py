"""The verdict of ``doctor`` on a model, as text and as JSON."""

from __future__ import annotations

import json
from typing import Any

MIB = 2**20


def render(verdict: dict[str, Any]) -> str:
    """The verdict as text."""
    if not verdict["supported"]:
        reasons = "".join(f"\n  {reason}" for reason in verdict["refused"].splitlines())
        return f"{verdict['model']}: refused{reasons}"
    rows = [
        ("architecture", f"{verdict['architecture']} ({verdict['family']})"),
        ("positions", verdict["positions"]),
        ("native context", f"{verdict['native_context']:,} tokens"),
        (
            "policy",
            f"{verdict['policy']}: {verdict['sink_tokens']} sink tokens, "
            f"a window of {verdict['window_tokens']:,}",
        ),
        ("sliding window", _model_windows(verdict)),
        (
            "KV of a stream",
            f"{verdict['kv_bytes_per_stream'] / MIB:,.1f} MiB in {verdict['blocks_per_stream']} "
            f"blocks of {verdict['block_size']} tokens ({verdict['dtype']}), at any length",
        ),
        ("while prefilling", f"up to {verdict['blocks_while_prefilling']} blocks"),
        ("streams that fit", _streams_that_fit(verdict)),
        ("longest stream", _longest_stream(verdict)),
    ]
    body = "\n".join(f"  {name:<17} {value}" for name, value in rows if value)
    return f"{verdict['model']}: supported\n{body}"


def dumps(verdict: dict[str, Any]) -> str:
    """The verdict as JSON."""
    return json.dumps(verdict, indent=2)


def _model_windows(verdict: dict[str, Any]) -> str:
    if verdict["own_window"]:
        return f"replaces the model's own sliding window of {verdict['own_window']} tokens"
    if verdict["layer_windows"]:
        return f"{len(verdict['layer_windows'])} layers keep their own window, without sinks"
    return ""


def _streams_that_fit(verdict: dict[str, Any]) -> str:
    pool = verdict["kv_pool_bytes"]
    if pool is None:
        return "unknown: vLLM measures the pool at start-up; name one with --kv-gib"
    return (
        f"{verdict['streams_that_fit']} in {verdict['stream_share']:g} of a pool of "
        f"{pool / MIB:,.0f} MiB (--sink-stream-share)"
    )


def _longest_stream(verdict: dict[str, Any]) -> str:
    limit, segment = verdict["max_stream_tokens"], verdict["segment_tokens"]
    if limit is not None:
        return f"{limit:,} tokens (--max-model-len)"
    return f"until it is stopped, in segments of {segment:,} tokens"
