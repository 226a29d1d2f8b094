"""One place where this package leans on more of vLLM than vLLM promises."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["wraps", "replaces", "adds", "overrides", "reads", "imports"]

#: Where a hook is installed: by the plugin's entry point, in any process; in front of an engine
#: with a policy (API server, ``LLM``); in an engine core; in a worker; on the objects of one model
#: runner; in a replica of Ray Serve's.
Place = Literal["plugin", "front end", "engine core", "worker", "V1 runner", "V2 runner", "replica"]


@dataclass(frozen=True)
class Hook:
    """One place.

    Attributes:
        kind: ``wraps``, a function of vLLM's is called by one of this package; ``replaces``, a name
            of a module stands for another class; ``adds``, a dataclass has one more field;
            ``overrides``, a subclass given to vLLM by one of its own settings replaces a method of
            its base; ``reads``, an attribute that no interface promises; ``imports``, a name that
            this package imports.
        target: ``module:Class.name`` of vLLM.
        why: what it is for, and why no interface of vLLM does it.
        parameters: names that the hook passes or reads.
        optional: a vLLM without it lacks the feature that the hook is about, so nothing is to do.
    """

    kind: Kind
    target: str
    why: str
    parameters: tuple[str, ...] = ()
    optional: bool = False

    @property
    def module(self) -> str:
        return self.target.partition(":")[0]

    @property
    def qualname(self) -> str:
        return self.target.partition(":")[2]


@dataclass(frozen=True, kw_only=True)
class Installed(Hook):
    """A hook that is installed at run time: ``wraps``, ``replaces`` or ``adds``.

    Attributes:
        by: what is installed, ``module:name`` of this package. A wrapper is called as
            ``wrapper(wrapped, instance, *args, **kwargs)`` with ``wrapped`` bound (``wrapt``); a
            replacement is a class; an added field is named like its type's attribute ``field``.
        places: where it is installed.
        until: what vLLM would have to offer so that the hook can go.
        on: for ``V1 runner`` and ``V2 runner``, the attribute of the runner whose method it is;
            empty for the runner's own. ``by`` is a method of the runner's adapter then.
        field: of ``adds``, the field's name.
    """

    by: str
    places: tuple[Place, ...]
    until: str
    on: str = ""
    field: str = ""


def reads(owner: str, why: str, *names: str, optional: bool = False) -> tuple[Hook, ...]:
    """One hook for each attribute of a class."""
    return tuple(Hook("reads", f"{owner}.{name}", why, optional=optional) for name in names)
