"""All rows of the table, in the order of ``docs/features.md``."""

from __future__ import annotations

from vllm_sink.startup.features import (
    held_model,
    held_scheduling,
    held_server,
    refused_answers,
    refused_cache,
    refused_execution,
    refused_replacements,
)
from vllm_sink.startup.features.no_bearing import NO_BEARING
from vllm_sink.startup.features.request import REQUEST

#: Rows of the engine and its server.
ENGINE = (
    *held_scheduling.ROWS,
    *held_model.ROWS,
    *held_server.ROWS,
    *refused_cache.ROWS,
    *refused_answers.ROWS,
    *refused_execution.ROWS,
    *refused_replacements.ROWS,
)

FEATURES = (*ENGINE, *REQUEST)


def unclassified(fields: set[str]) -> set[str]:
    """Those of ``fields`` that neither a row nor a group names."""
    named = {field for feature in FEATURES for field in feature.fields}
    grouped = {field for _, group in NO_BEARING for field in group.split()}
    return fields - named - grouped
