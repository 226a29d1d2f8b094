"""Reads this project's mappings in vLLM's ``additional_config``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vllm_sink.errors import PolicyError


def section_of(
    additional_config: object, key: str, known: Mapping[str, str], example: str
) -> Mapping[str, Any]:
    """One of this project's mappings in ``additional_config``; empty where it is not there.

    Raises:
        PolicyError: it is no mapping, or has a key that is not ``known``.
    """
    config = additional_config if isinstance(additional_config, Mapping) else {}
    given = config.get(key, {})
    if not isinstance(given, Mapping):
        raise PolicyError(key, given, f"a mapping such as {example}")
    for name in given:
        if name not in known:
            raise PolicyError(f"{key}.{name}", given[name], f"one of {', '.join(known)}")
    return given


def require_int(field: str, value: object, least: int) -> int:
    """``value`` if it is an integer of at least ``least``.

    Raises:
        PolicyError: naming the field, the value and what is allowed.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise PolicyError(field, value, f"an integer of at least {least}")
    return value
