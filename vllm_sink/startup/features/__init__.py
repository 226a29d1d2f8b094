"""Which of vLLM's features work under a policy, and which are refused: one table.

A row of ``FEATURES`` names the test that covers it, or the reason why it is refused; ``NO_BEARING``
groups the settings that a stream does not depend on. Together they name every field of vLLM's
engine and server arguments, of its sampling parameters and of its prompts
(``tests/unit/test_features.py`` walks them), so that new fields of vLLM are examined first.

The rows are in files by topic: ``held_*``, ``refused_*``, ``request``.
``docs/features.md`` is written by ``python -m vllm_sink.startup.features``.
"""

from vllm_sink.startup.features.no_bearing import NO_BEARING
from vllm_sink.startup.features.page import PAGE, render
from vllm_sink.startup.features.refuse import (
    reasons,
    refusal,
    refuse_arguments,
    refuse_config,
    refused_arguments,
)
from vllm_sink.startup.features.request import REQUEST
from vllm_sink.startup.features.row import Feature
from vllm_sink.startup.features.table import ENGINE, FEATURES, unclassified

__all__ = [
    "ENGINE",
    "FEATURES",
    "NO_BEARING",
    "PAGE",
    "REQUEST",
    "Feature",
    "reasons",
    "refusal",
    "refuse_arguments",
    "refuse_config",
    "refused_arguments",
    "render",
    "unclassified",
]
