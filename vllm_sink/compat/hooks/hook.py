"""One place where this package depends on vLLM's internals."""

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
        kind: ``wraps``, a function of this package is called with vLLM's; ``replaces``, a name of a
            module is bound to another class; ``adds``, a dataclass gets one more field;
            ``overrides``, a subclass that a setting of vLLM's names overrides a method of its base;
            ``reads``, an attribute that no interface promises; ``imports``, a name that this
            package imports.
        target: ``module:Class.name`` of vLLM.
        why: what it is for, and why no interface of vLLM does it.
        parameters: names that the hook passes or reads.
        optional: a vLLM without it does not need the hook, because it lacks the feature too.
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
        until: what vLLM must offer before the hook can be removed.
        on: for ``V1 runner`` and ``V2 runner``, the attribute of the runner whose method it is;
            empty for the runner's own. ``by`` is then a method of the runner's adapter.
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
