"""Values of flags and settings as an error states them: short, and without secrets."""

from __future__ import annotations

import dataclasses
import enum
import json
from typing import Any

#: Parts of names whose values are not repeated: errors go to logs.
_SECRET = ("key", "secret", "password", "credential")
#: Fields of vLLM's configs that it fills with a random name.
_RANDOM = ("engine_id",)
#: Characters of a value that an error repeats.
_LONGEST = 200


def text_of(value: Any) -> str:
    """A value as on a command line; of a config, what is not its default, as JSON."""
    plain = _plain(value)
    if isinstance(plain, dict):
        plain = json.dumps(plain, default=str)
    elif isinstance(plain, list):
        plain = " ".join(map(str, plain))
    text = f"{plain:g}" if isinstance(plain, float) else str(plain)
    return text if len(text) <= _LONGEST else text[:_LONGEST] + "..."


def default_of(field: dataclasses.Field[Any]) -> Any:
    """The default of a dataclass's field; None without one."""
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return None if field.default is dataclasses.MISSING else field.default


def _plain(value: Any) -> Any:
    """The value made of types that JSON has."""
    if isinstance(value, enum.Enum):
        return value.name
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = _changed(value)
    if isinstance(value, dict):
        return {
            str(name): "***" if _is_secret(str(name)) else _plain(it) for name, it in value.items()
        }
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(it) for it in value]
    return value


def _changed(config: Any) -> dict[str, Any]:
    """The fields of a dataclass that differ from their defaults; all fields if none does."""
    try:
        ordinary = type(config)()
    except Exception:  # some fields have no default, and vLLM checks others
        ordinary = None
    found, changed = {}, {}
    for field in dataclasses.fields(config):
        if field.name in _RANDOM:
            continue
        value = found[field.name] = getattr(config, field.name, None)
        default = default_of(field) if ordinary is None else getattr(ordinary, field.name, None)
        if value != default:
            changed[field.name] = value
    return changed or found


def _is_secret(name: str) -> bool:
    return any(part in name.lower() for part in _SECRET)
