"""Installs the hooks of ``vllm_sink.compat.hooks``, in the order of the table.

Wrapping is ``wrapt``'s: a wrapped function keeps its signature, and static and class methods are
bound as before. In a vLLM with the patches of ``patches/`` the functions are extension points: they
are extended, and no attribute of vLLM's is replaced.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
from collections.abc import Callable
from operator import attrgetter
from typing import Any

import wrapt

from vllm_sink.compat.hooks.hook import Installed, Place
from vllm_sink.compat.hooks.installed import WRAPS
from vllm_sink.compat.hooks.ray import RAY_WRAPS

#: Targets of the hooks installed in this process.
INSTALLED: set[str] = set()

#: The attribute of an extension point that names what extends it.
_EXTENDED_BY = "__vllm_sink__"


def install(place: Place) -> None:
    """Install every hook of a process; those that are there already stay as they are.

    Raises:
        ImportError: vLLM has no such attribute: an unknown version, refused by name.
    """
    for hook in (*WRAPS, *RAY_WRAPS):
        if place in hook.places:
            _INSTALL[hook.kind](hook)


def install_on(runner: Any, adapter: Any, place: Place) -> None:
    """Wrap methods of one model runner, and of its parts, by methods of its adapter.

    Args:
        runner: vLLM's.
        adapter: an object of the class that the hooks of this place name.
        place: ``V1 runner`` or ``V2 runner``.

    Raises:
        ImportError: there is no such method: an unknown version, refused by name.
    """
    for hook in WRAPS:
        if place not in hook.places:
            continue
        owner = attrgetter(hook.on)(runner) if hook.on else runner
        if owner is None:  # only the last rank of a pipeline samples
            continue
        name = hook.target.rpartition(".")[2]
        if not hasattr(owner, name):
            raise _missing(hook)
        wrapper = getattr(adapter, hook.by.rpartition(".")[2])
        wrapt.wrap_function_wrapper(owner, name, _calling(wrapper))
        INSTALLED.add(hook.target)


def uninstall(place: Place) -> None:
    """Restore what was there before ``install(place)``."""
    for hook in WRAPS:
        if place not in hook.places or hook.kind != "wraps":
            continue
        owner, name = _owner_of(hook)
        current = vars(owner).get(name)
        if isinstance(current, _Wrapped):
            while isinstance(current, _Wrapped):
                current = current.__wrapped__
            setattr(owner, name, current)
        elif getattr(current, _EXTENDED_BY, ()):
            current.extended = current.__wrapped__  # type: ignore[union-attr]
            setattr(current, _EXTENDED_BY, ())


class _Wrapped(wrapt.FunctionWrapper[Any, Any]):
    """A function of vLLM's that is called by a wrapper of this package."""

    def __init__(self, wrapped: Any, hook: Installed) -> None:
        super().__init__(wrapped, _calling(_resolve(hook.by)))
        self._self_by = hook.by


def _calling(wrapper: Callable[..., Any]) -> Callable[..., Any]:
    """A wrapper with the signature that ``wrapt`` calls."""

    def call(wrapped: Any, instance: Any, args: Any, kwargs: Any) -> Any:
        return wrapper(wrapped, instance, *args, **kwargs)

    return call


def _wrap(hook: Installed) -> None:
    owner, name = _owner_of(hook)
    original = vars(owner).get(name)
    if original is None:
        if hook.optional:
            return
        raise _missing(hook)
    INSTALLED.add(hook.target)
    point = getattr(original, "__func__", original)
    if hasattr(point, "extend"):
        _extend(point, hook)
    elif hook.by not in _installed_on(original):
        setattr(owner, name, _Wrapped(original, hook))


def _installed_on(function: Any) -> set[str]:
    """The wrappers that a function has already."""
    found = set()
    while isinstance(function, _Wrapped):
        found.add(function._self_by)
        function = function.__wrapped__
    return found


def _extend(point: Any, hook: Installed) -> None:
    """Use an extension point of a patched vLLM."""
    names = getattr(point, _EXTENDED_BY, ())
    if hook.by in names:
        return
    wrapper = _resolve(hook.by)
    owner, name = _owner_of(hook)
    static = isinstance(vars(owner)[name], staticmethod)

    def make(inner: Callable[..., Any]) -> Callable[..., Any]:
        if static:
            return functools.partial(wrapper, inner, None)

        def call(self: Any, *args: Any, **kwargs: Any) -> Any:
            return wrapper(functools.partial(inner, self), self, *args, **kwargs)

        return call

    point.extend(make)
    setattr(point, _EXTENDED_BY, (*names, hook.by))


def _replace(hook: Installed) -> None:
    """Bind a name of a module to a class of this package."""
    module, replacement = importlib.import_module(hook.module), _resolve(hook.by)
    # A patched vLLM names the type of its requests in a class attribute.
    owner: Any = getattr(module, "EngineCoreProc", None)
    if hasattr(owner, "request_type"):
        owner.request_type = replacement
    elif hasattr(module, hook.qualname):
        setattr(module, hook.qualname, replacement)
    else:
        raise _missing(hook)
    INSTALLED.add(hook.target)


def _add(hook: Installed) -> None:
    """Give a dataclass of vLLM's one more field, None by default.

    msgspec reads a dataclass's fields and annotations when an encoder or decoder is made, so both
    processes do this earlier. A patched vLLM has a field for plugins, which is used instead.
    """
    owner, kind = _resolve(hook.target), _resolve(hook.by)
    known = owner.__dataclass_fields__
    INSTALLED.add(hook.target)
    if "plugin_stats" in known or hook.field in known:
        return
    # A field made by the dataclass machinery itself, with its type and default in place.
    extra = dataclasses.make_dataclass("_", [(hook.field, kind | None, None)])
    known[hook.field] = dataclasses.fields(extra)[0]
    owner.__annotations__[hook.field] = kind | None
    setattr(owner, hook.field, None)


_INSTALL: dict[str, Callable[[Installed], None]] = {
    "wraps": _wrap,
    "replaces": _replace,
    "adds": _add,
}


def _owner_of(hook: Installed) -> tuple[Any, str]:
    """The class whose method a hook wraps, and the method's name."""
    path, _, name = hook.qualname.rpartition(".")
    try:
        return attrgetter(path)(importlib.import_module(hook.module)), name
    except AttributeError:
        raise _missing(hook) from None


def _resolve(target: str) -> Any:
    module, _, path = target.partition(":")
    return attrgetter(path)(importlib.import_module(module))


def _missing(hook: Installed) -> ImportError:
    package = hook.module.partition(".")[0]
    return ImportError(f"vllm-sink does not know this {package}: {hook.target} is not there")
