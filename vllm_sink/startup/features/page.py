"""The table in Markdown: ``docs/features.md``."""

from __future__ import annotations

from pathlib import Path

from vllm_sink.startup.features.no_bearing import NO_BEARING
from vllm_sink.startup.features.request import REQUEST
from vllm_sink.startup.features.row import Feature
from vllm_sink.startup.features.table import ENGINE

PAGE = Path(__file__).parents[3] / "docs" / "features.md"

_HEAD = """# vLLM's features under a policy

Written by `make features` from `vllm_sink/startup/features/`. Each feature is covered by the named
test, or a server does not start with it; `vllm-sink doctor MODEL` with the same flags says so
before any weights are loaded. There is no third kind: `tests/unit/test_features.py` walks every
field of vLLM's arguments, of its sampling parameters and of its prompts.
"""


def render() -> str:
    """The table in Markdown."""
    held_ones = [feature for feature in ENGINE if not feature.refused]
    refused_ones = [feature for feature in ENGINE if feature.refused]
    parts = [_HEAD, "## Engine and server: supported\n", *_table("flags", "test", "")]
    parts += map(_held_row, held_ones)
    parts += ["\n## Engine and server: refused\n", *_table("flags", "why", "")]
    parts += map(_refused_row, refused_ones)
    parts += ["\n## A request\n", *_table("fields", "test", "")]
    parts += map(_request_row, REQUEST)
    parts.append("\n## No bearing on a stream\n")
    parts += [f"- {why} {_code(tuple(fields.split()))}" for why, fields in NO_BEARING]
    return "\n".join(parts) + "\n"


def _table(*columns: str) -> tuple[str, str]:
    heads = ("feature", *columns)
    return f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"


def _code(names: tuple[str, ...]) -> str:
    return " ".join(f"`{name}`" for name in names)


def _held_row(feature: Feature) -> str:
    return f"| {feature.name} | {_code(feature.flags)} | `{feature.test}` | {feature.why} |"


def _refused_row(feature: Feature) -> str:
    note = ""
    if feature.hand_made:
        note = f"from Python tested with a config made by hand: {feature.hand_made}"
    return f"| {feature.name} | {_code(feature.flags)} | {feature.why} | {note} |"


def _request_row(feature: Feature) -> str:
    return f"| {feature.name} | {_code(feature.fields)} | `{feature.test}` | {feature.why} |"
