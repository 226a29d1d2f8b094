"""What the configs have in common: their flags, and one shape of error for all of them.

A config is a pydantic dataclass. Its fields say everything once: type and bounds, the text of the
help, the default, and the flag of ``vllm serve`` that sets it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

from pydantic import ConfigDict, ValidationError
from pydantic.fields import FieldInfo

from vllm_sink.errors import PolicyError

#: Of every config: no unknown field, and no value that is merely like one (true is no integer).
STRICT = ConfigDict(extra="forbid", strict=True, validate_by_name=True)

T = TypeVar("T")


@dataclass(frozen=True)
class Flag:
    """The flag of ``vllm serve`` that sets a field.

    Attributes:
        name: as it is typed.
        metavar: stands for the value in the help; None where the values themselves do.
        default: as the help says it; None for the field's own.
    """

    name: str
    metavar: str | None = None
    default: str | None = None


@dataclass(frozen=True)
class Allowed:
    """What an error says is allowed, as far as a field's type and bounds do not say it.

    Attributes:
        text: in place of them.
        unit: before them.
        word: also allowed, in place of a number.
        secret: an error names the value's type only.
    """

    text: str | None = None
    unit: str | None = None
    word: str | None = None
    secret: bool = False


def fields_of(config: type) -> dict[str, FieldInfo]:
    """The fields of a config by the key that sets them: their alias, or their name."""
    found: dict[str, FieldInfo] = config.__pydantic_fields__  # type: ignore[attr-defined]
    return {str(info.validation_alias or name): info for name, info in found.items()}


def flags_of(config: type) -> dict[str, str]:
    """The names of a config's flags, by key."""
    flags = {key: extra(info, Flag) for key, info in fields_of(config).items()}
    return {key: flag.name for key, flag in flags.items() if flag is not None}


def extra(info: FieldInfo, kind: type[T]) -> T | None:
    """What a field is annotated with of a kind, besides its type."""
    return next((found for found in info.metadata if isinstance(found, kind)), None)


def type_of(info: FieldInfo) -> Any:
    """A field's type, without None."""
    if get_origin(info.annotation) in (Union, UnionType):
        return next(t for t in get_args(info.annotation) if t is not NoneType)
    return info.annotation


def allowed_of(info: FieldInfo) -> str:
    """What a field takes, in words."""
    allowed = extra(info, Allowed) or Allowed()
    text = allowed.text or _bounds(info)
    if allowed.unit is not None:
        text = f"{allowed.unit}: {text}"
    return text if allowed.word is None else f"{text}, or {allowed.word}"


def _bounds(info: FieldInfo) -> str:
    kind = type_of(info)
    if get_origin(kind) is Literal:
        return f"one of {', '.join(get_args(kind))}"
    if kind is bool:
        return "true or false"
    bounds = {
        name: getattr(bound, name)
        for bound in info.metadata
        for name in ("ge", "gt", "le")
        if hasattr(bound, name)
    }
    text = {int: "an integer", float: "a number"}.get(kind, "text")
    if "ge" in bounds:
        text += f" of at least {bounds['ge']:g}"
    if "gt" in bounds:
        text += f" above {bounds['gt']:g}"
    if "le" in bounds:
        text += f", and at most {bounds['le']:g}".replace("e+0", "e")
    return text


def named_by_flag(config: type, section: str) -> Callable[[str], str]:
    """What an error calls a key of a section of ``additional_config``: its flag, if it has one."""
    flags = flags_of(config)
    return lambda key: flags.get(key, f"{section}.{key}")


def validated(config: type[T], given: Mapping[Any, Any], called: Callable[[str], str]) -> T:
    """A config of what was given by key; null is the default of a field that has one.

    Args:
        config: a pydantic dataclass.
        given: by key.
        called: what an error calls a key.

    Raises:
        PolicyError: naming the flag or key, the value and what is allowed.
    """
    fields = fields_of(config)
    values = {
        str(key): value
        for key, value in given.items()
        if value is not None or key not in fields or fields[key].is_required()
    }
    try:
        return config(**values)
    except ValidationError as error:
        raise _refusal(error, fields, values, called) from None


def _refusal(
    error: ValidationError,
    fields: Mapping[str, FieldInfo],
    values: Mapping[str, Any],
    called: Callable[[str], str],
) -> PolicyError:
    """The first thing that is wrong, as an error of this project."""
    first = error.errors(include_url=False)[0]
    cause = first.get("ctx", {}).get("error")
    if isinstance(cause, PolicyError):  # a validator's, of several fields
        return cause
    key = str(first["loc"][0])
    value = values.get(key)
    if key not in fields:
        return PolicyError(called(key), value, f"one of {', '.join(fields)}")
    allowed = extra(fields[key], Allowed)
    if allowed is not None and allowed.secret:
        value = type(value).__name__
    return PolicyError(called(key), value, allowed_of(fields[key]))
