"""A row of the table: a feature that a test covers, or one that is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from vllm_sink.startup.features.checks import Check

#: The reason if there is no other.
NOT_HELD = "not tested against the reference yet"


@dataclass(frozen=True)
class Feature:
    """A row of the table: covered by ``test``, or refused because of ``why``.

    Attributes:
        name: for people.
        flags: as given to ``vllm serve``; an error names the given ones, else the first. Of a
            request: none.
        fields: of ``AsyncEngineArgs`` and ``FrontendArgs``; of a request, its own.
        test: ``path::function`` that covers it; empty if it is refused.
        why: the reason of a refusal; of a supported feature, a remark.
        allowed: of a refusal, the values that a server starts with.
        set_in: whether a ``VllmConfig`` asks for it; None if ``elsewhere`` checks.
        set_by: whether a command line of ``vllm serve`` does, where a config does not say it, or
            where vLLM itself would refuse it for a reason of its own.
        elsewhere: the module that refuses it, where its check needs more than a config.
        hand_made: why ``set_in`` is tested with a config made by hand, if it is.
    """

    name: str
    flags: tuple[str, ...] = ()
    fields: tuple[str, ...] = ()
    test: str = ""
    why: str = ""
    allowed: str = ""
    set_in: Check | None = None
    set_by: Callable[[Any], bool] | None = None
    elsewhere: str = ""
    hand_made: str = ""

    @property
    def refused(self) -> bool:
        return not self.test


def held(name: str, flags: str, test: str, fields: str | None = None, why: str = "") -> Feature:
    """A feature that works, which ``test`` covers."""
    return Feature(name, tuple(flags.split()), _fields(flags, fields), test, why)


def refused(
    name: str,
    flags: str,
    why: str,
    set_in: Check | None = None,
    *,
    fields: str | None = None,
    allowed: str = "without it",
    set_by: Callable[[Any], bool] | None = None,
    elsewhere: str = "",
    hand_made: str = "",
) -> Feature:
    """A feature with which no server starts."""
    return Feature(
        name,
        tuple(flags.split()),
        _fields(flags, fields),
        why=why,
        allowed=allowed,
        set_in=set_in,
        set_by=set_by,
        elsewhere=elsewhere,
        hand_made=hand_made,
    )


def _fields(flags: str, fields: str | None) -> tuple[str, ...]:
    """The fields that flags set: their own names unless others are given."""
    if fields is not None:
        return tuple(fields.split())
    return tuple(flag.removeprefix("--").replace("-", "_") for flag in flags.split())
