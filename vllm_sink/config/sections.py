"""Reads this project's mappings in vLLM's ``additional_config``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from vllm_sink.errors import PolicyError

T = TypeVar("T")

#: Sections that are kept parsed; a process serves one engine, and tests serve more.
MAX_KEPT = 64

_ABSENT: Mapping[str, Any] = {}


def section_of(additional_config: object, key: str, example: str) -> Mapping[str, Any]:
    """One of this project's mappings in ``additional_config``; empty where it is not there.

    Raises:
        PolicyError: it is no mapping.
    """
    if not isinstance(additional_config, Mapping):
        return _ABSENT
    given = additional_config.get(key, _ABSENT)
    if not isinstance(given, Mapping):
        raise PolicyError(key, given, f"a mapping such as {example}")
    return given


def parsed_once(
    parse: Callable[[Mapping[str, Any]], T],
) -> Callable[[Mapping[str, Any]], T]:
    """``parse`` that parses a mapping again only when it has changed: every request asks for it.

    A mapping is known by its identity and compared with what it was. That is cheaper than any text
    of it as a key, and sees a change in place; a valid section holds no other mapping.
    """
    kept: dict[int, tuple[Mapping[str, Any], dict[str, Any], T]] = {}

    def read(given: Mapping[str, Any]) -> T:
        found = kept.get(id(given))  # the mapping is kept as well, so that no other has its id
        if found is not None and found[1] == given:
            return found[2]
        parsed = parse(given)
        if len(kept) >= MAX_KEPT:
            kept.clear()
        kept[id(given)] = given, dict(given), parsed
        return parsed

    return read


def require_int(field: str, value: object, least: int) -> int:
    """``value`` if it is an integer of at least ``least``.

    Raises:
        PolicyError: naming the field, the value and what is allowed.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise PolicyError(field, value, f"an integer of at least {least}")
    return value
