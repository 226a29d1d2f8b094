"""Errors of Typer in this project's shape: the flag, the value and what is allowed."""

from __future__ import annotations

from typing import Any

import typer

from vllm_sink.errors import PolicyError


def usage_of(error: typer.TyperException) -> str:
    """The usage of the command that has the error, as a line; empty where there is none."""
    context = getattr(error, "ctx", None)
    return "" if context is None else f"{context.get_usage()}\n"


def explanation(error: typer.TyperException) -> str:
    """What is wrong with the command line."""
    from pydantic import ValidationError

    parameter, cause = getattr(error, "param", None), error.__cause__
    if parameter is None or not isinstance(cause, ValidationError):
        return error.format_message()
    found = cause.errors()[0]
    return str(PolicyError(parameter.opts[0], found["input"], _allowed(parameter, found["type"])))


def _allowed(parameter: Any, kind: str) -> str:
    """The allowed values of a number.

    Args:
        parameter: Typer's; the metavar of a number with a unit is the unit.
        kind: pydantic's name of the error.
    """
    if isinstance(parameter.min, int) or kind.startswith("int"):
        return "an integer" + ("" if parameter.min is None else f" of at least {parameter.min}")
    if parameter.min is None:
        return "a number"
    unit = "" if parameter.metavar is None else f" of {parameter.metavar}"
    return f"a positive number{unit}, {parameter.min:g} to {parameter.max:g}"
