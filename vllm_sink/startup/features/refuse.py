"""Refuses the features that the table refuses: the flag, its value, the reason, what is allowed."""

from __future__ import annotations

from typing import Any

from vllm_sink.errors import UnsupportedError
from vllm_sink.startup.features.as_written import flags_given, written
from vllm_sink.startup.features.row import Feature
from vllm_sink.startup.features.table import ENGINE


def refuse_config(vllm_config: Any, engine_args: Any = None) -> None:
    """Refuse a config that asks for a refused feature.

    Args:
        engine_args: what the config was made from; an error then names the flags as given.

    Raises:
        UnsupportedError: naming each flag, its value, the reason and what is allowed, a line each.
    """
    _raise(
        [
            _reason(feature, flags_given(feature, engine_args), feature.set_in.values(vllm_config))
            for feature in ENGINE
            if feature.set_in is not None and feature.set_in(vllm_config)
        ]
    )


def refuse_arguments(args: Any) -> None:
    """Refuse arguments that ask for a refused feature, before vLLM makes a config of them.

    Args:
        args: the namespace of ``vllm serve``, or an ``EngineArgs``.

    Raises:
        UnsupportedError: naming each flag, its value, the reason and what is allowed, a line each.
    """
    _raise(reasons(args))


def reasons(args: Any) -> list[str]:
    """What ``refuse_arguments`` says, a line for each feature; empty where nothing is refused."""
    return [_reason(row, flags_given(row, args)) for row in refused_arguments(args)]


def refused_arguments(args: Any) -> list[Feature]:
    """The rows that ``refuse_arguments`` refuses."""
    return [row for row in ENGINE if row.set_by is not None and row.set_by(args)]


def _raise(lines: list[str]) -> None:
    if lines:
        raise UnsupportedError("\n".join(lines))


def refusal(flag: str, value: Any) -> UnsupportedError:
    """The error of the row that begins with ``flag``, for a module with a check of its own."""
    feature = next(row for row in ENGINE if row.flags[0] == flag and row.refused)
    return UnsupportedError(_reason(feature, written(flag, value)))


def _reason(feature: Feature, flags: str, found: str = "") -> str:
    """Why a server does not start.

    Args:
        flags: the flags as given; empty if none was.
        found: the config's values in that case, by vLLM's own choice or from another flag.
    """
    what = flags or _found(feature.flags[0], found)
    return f"{what} with --kv-policy: {feature.why}; allowed: {feature.allowed}"


def _found(flag: str, found: str) -> str:
    if not found or "=" in flag:  # the flag itself names the value
        return flag
    return f"{flag} ({found})" if flag.startswith("--") else f"{flag}={found}"
