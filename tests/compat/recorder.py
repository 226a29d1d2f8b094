"""Records what this package reads of vLLM's objects while it runs, and reports what is not listed.

Every class that vLLM has defined so far gets a ``__getattribute__`` and a ``__setattr__`` that
check the caller: only code of this package counts. A msgspec Struct takes the former like any other
class; its writer is in C and cannot be replaced, so only reads of it are seen. Reads of a class or
a module itself are not seen here: ``test_reads.py`` finds those in the source.

A process that records is slow, and its vLLM stays changed: use one of its own.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from enum import Enum
from pathlib import Path
from types import CodeType
from typing import Any

import msgspec
import torch

import vllm_sink
from vllm_sink.compat import hooks, probes
from vllm_sink.compat.source import Source

PACKAGE = str(Path(vllm_sink.__file__).parent) + "/"

#: Attributes of this package's own, on objects of vLLM's.
OWN = ("sink_", "_sink", "_vllm_sink", "__")

#: Class and attribute, and where it was read first.
_Seen = dict[tuple[type, str], tuple[CodeType, int]]


class Recorder:
    """Who read, or wrote, which attribute of which class."""

    def __init__(self) -> None:
        self._seen: _Seen = {}
        self._done: set[type] = set()
        # What an engine imports while it is made would be recorded too late.
        for module in sorted({hook.module for hook in (*hooks.READS, *hooks.WRAPS)}):
            # vLLM's CPU worker makes buffers those of a CPU, for the whole process.
            if torch.cuda.is_available() and ".cpu" in module:
                continue
            with suppress(ImportError):
                importlib.import_module(module)

    def install(self) -> None:
        """Record from now on; call it again when vLLM has imported more."""
        classes = set(_classes_of_vllm())
        in_c = {b for c in classes if issubclass(c, msgspec.Struct) for b in c.__mro__}
        for cls in classes - self._done:
            if "__getattribute__" in vars(cls):
                continue
            cls.__getattribute__ = _reading(self._seen)
            if cls not in in_c:
                cls.__setattr__ = _writing(self._seen, cls)
        self._done |= classes

    def unlisted(self) -> dict[str, str]:
        """Attributes of vLLM's that no hook lists, and where this package reads them."""
        sources = {"vllm": probes.installed(), "vllm_sink": Source(Path(PACKAGE))}
        listed = _listed()
        found = {}
        for (cls, name), (code, line) in sorted(self._seen.items(), key=str):
            # A model's modules are found by walking it: none of their names is relied on.
            if name.startswith(OWN) or cls.__module__.startswith("vllm.model_executor.models."):
                continue
            owner = _owner(cls, name, sources)
            if owner is None or any((base, name) in listed for base in cls.__mro__):
                continue
            if _is_public(cls, name):
                continue
            place = code.co_filename.removeprefix(PACKAGE)
            found[f"{_target(owner)}.{name}"] = f"{place}:{line}, of a {cls.__qualname__}"
        return found

    def read(self) -> list[str]:
        """The hooks that were read, or wrapped, as ``hooks`` names them."""
        seen = {(base, name) for cls, name in self._seen for base in cls.__mro__}
        return sorted(target for place, target in _listed().items() if place in seen)


def _classes_of_vllm() -> Iterator[type]:
    for module_name, module in list(sys.modules.items()):
        if module_name.split(".")[0] != "vllm" or "third_party" in module_name:
            continue
        for cls in list(vars(module).values()):
            if (
                isinstance(cls, type)
                and cls.__module__.split(".")[0] == "vllm"
                and not issubclass(cls, Enum)
                and not getattr(cls, "_is_protocol", False)
            ):
                yield cls


def _reading(seen: _Seen) -> Callable[..., Any]:
    plain = object.__getattribute__

    def read(self: Any, name: str) -> Any:
        frame = sys._getframe(1)
        if frame.f_code.co_filename.startswith(PACKAGE):
            seen.setdefault((type(self), name), (frame.f_code, frame.f_lineno))
        return plain(self, name)

    return read


def _writing(seen: _Seen, cls: type) -> Callable[..., None]:
    own = vars(cls).get("__setattr__")

    def write(self: Any, name: str, value: Any) -> None:
        frame = sys._getframe(1)
        if frame.f_code.co_filename.startswith(PACKAGE):
            seen.setdefault((type(self), name), (frame.f_code, frame.f_lineno))
        if own is not None:
            own(self, name, value)
        else:
            # What comes next depends on the object: this class may be a mixin of a torch module.
            super(cls, self).__setattr__(name, value)

    return write


def _owner(cls: type, name: str, sources: dict[str, Source]) -> type | None:
    """The class of vLLM's that has the attribute; None if another package's has it, or none."""
    for base in cls.__mro__:
        package = base.__module__.partition(".")[0]
        source = sources.get(package)
        if package == "vllm_sink" and name in _only_annotated(base):
            continue  # for a type checker; its owner comes later
        has = name in vars(base) or (
            source is not None
            and source.attribute(base.__module__, f"{base.__qualname__}.{name}") is not None
        )
        if has:
            return base if package == "vllm" else None
    return None


def _only_annotated(cls: type) -> set[str]:
    return set(vars(cls).get("__annotations__", ())) - set(vars(cls))


def _is_public(cls: type, name: str) -> bool:
    return any(
        name in getattr(base, "__dataclass_fields__", ())
        if base.__module__.startswith("vllm.config.")
        else _target(base) in hooks.PUBLIC
        for base in cls.__mro__
    )


def _target(cls: type) -> str:
    return f"{cls.__module__}:{cls.__qualname__}"


def _listed() -> dict[tuple[type, str], str]:
    """Class and attribute of each hook whose module was imported, and its target."""
    overrides = [f.hook for f in probes.check(probes.installed()) if f.hook.kind == "overrides"]
    found = {}
    for hook in (*hooks.READS, *hooks.WRAPS, *overrides):
        owner, _, name = hook.qualname.rpartition(".")
        cls = getattr(sys.modules.get(hook.module), owner, None) if owner else None
        if cls is not None:
            found[cls, name] = hook.target
    return found
