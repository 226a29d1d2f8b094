"""The flags of a row that were given, as on a command line."""

from __future__ import annotations

import dataclasses
import os
from functools import cache
from typing import Any

from vllm_sink import compat
from vllm_sink.startup.features.row import Feature
from vllm_sink.startup.features.values import default_of, text_of


def flags_given(feature: Feature, args: Any) -> str:
    """Flags of a row that differ from vLLM's defaults, with their values; empty if none does.

    Args:
        args: the namespace of ``vllm serve``, or an ``EngineArgs``.
    """
    defaults = _defaults()
    return " ".join(filter(None, (_given(flag, args, defaults) for flag in feature.flags)))


def written(flag: str, value: Any) -> str:
    """A flag with its value: ``--nnodes 2``, ``--grpc``."""
    return flag if value is True else f"{flag} {text_of(value)}"


def _given(flag: str, args: Any, defaults: dict[str, Any]) -> str:
    if not flag.startswith("--"):  # an environment variable
        return f"{flag}={os.environ[flag]}" if flag in os.environ else ""
    field = flag.removeprefix("--").replace("-", "_")
    if field.startswith("no_"):
        return flag if getattr(args, field.removeprefix("no_"), None) is False else ""
    value = getattr(args, field, None)
    if value is None or value is False or value == defaults.get(field):
        return ""
    return written(flag, value)


@cache
def _defaults() -> dict[str, Any]:
    """Of the fields of vLLM's engine and server arguments."""
    from vllm.engine.arg_utils import AsyncEngineArgs

    classes = (AsyncEngineArgs, compat.serve_arguments().FrontendArgs)
    return {field.name: default_of(field) for it in classes for field in dataclasses.fields(it)}
