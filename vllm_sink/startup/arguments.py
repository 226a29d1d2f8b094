"""Arguments of a command line, made of the fields of a config."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import ConfigDict, TypeAdapter
from pydantic.fields import FieldInfo

from vllm_sink.config.fields import Allowed, Flag, allowed_of, extra, fields_of, type_of


class _Name(str):
    """A flag's name as it was declared.

    argparse hands an action the text that was typed, or the declared name where that text is an
    abbreviation of it: so the two can be told apart.
    """

    __slots__ = ()


class _StoreByFullName(argparse.Action):
    """Stores a value; an abbreviation may mean another flag in the next version."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        if isinstance(option_string, _Name):
            raise argparse.ArgumentError(
                self, f"an abbreviation is not allowed; allowed: {option_string}"
            )
        setattr(namespace, self.dest, self.const if self.nargs == 0 else values)


def add_flags(group: Any, config: type) -> None:
    """Add an argument for each field of a config that has a flag.

    Args:
        group: of an ``argparse`` parser.
        config: a pydantic dataclass with fields annotated by ``Flag``.
    """
    for info in fields_of(config).values():
        flag = extra(info, Flag)
        if flag is None:
            continue
        kind: dict[str, Any] = {"type": _parser(info), "metavar": flag.metavar or _values(info)}
        if type_of(info) is bool:
            kind = {"nargs": 0, "const": True}
        group.add_argument(
            _Name(flag.name),
            action=_StoreByFullName,
            default=argparse.SUPPRESS,  # vLLM's formatter would print None
            help=_help(info, flag),
            **kind,
        )


def _help(info: FieldInfo, flag: Flag) -> str:
    default = flag.default
    if default is None and info.default not in (None, False):
        default = f"{info.default:g}" if type_of(info) is float else str(info.default)
    text = info.description or ""
    return text if default is None else f"{text} (default: {default})"


def _values(info: FieldInfo) -> str | None:
    kind = type_of(info)
    return "{" + ",".join(get_args(kind)) + "}" if get_origin(kind) is Literal else None


def _parser(info: FieldInfo) -> Callable[[str], Any]:
    """The ``type`` of an argument: the field's own check of a text's value."""
    kind = type_of(info)
    read: Callable[[str], Any] = kind if kind in (int, float) else str
    word = (extra(info, Allowed) or Allowed()).word

    def parse(text: str) -> Any:
        if text == word:
            return text
        try:
            return _check(info, read(text))
        except ValueError:  # of the text, or pydantic's of its value
            raise argparse.ArgumentTypeError(
                f"{text!r} is not allowed; allowed: {allowed_of(info)}"
            ) from None

    return parse


def _check(info: FieldInfo, value: Any) -> Any:
    """The value of a field.

    Raises:
        ValidationError: it is out of range.
    """
    field: Any = Annotated[(info.annotation, *info.metadata)]
    return TypeAdapter(field, config=ConfigDict(strict=True)).validate_python(value)
