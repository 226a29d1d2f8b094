"""Whether a vLLM has what this package depends on, by its sources and not by its version.

``check`` probes any vLLM, installed or only unpacked; ``require`` refuses an installed one before
an engine is made, naming what is missing. ``check_ray`` and ``require_ray`` do the same with Ray,
before an application is built.
"""

from __future__ import annotations

import ast
import gc
import importlib.metadata
import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from vllm_sink.compat.hooks import (
    OVERRIDES,
    RAY_OVERRIDES,
    RAY_READS,
    RAY_WRAPS,
    READS,
    WRAPS,
    Hook,
)
from vllm_sink.compat.source import Function, Source, forget
from vllm_sink.errors import UnsupportedError

#: Versions that the tests run with.
KNOWN_VERSIONS = ("0.29.0", "0.32.0")


@dataclass(frozen=True)
class Finding:
    """The result of a probe.

    Attributes:
        hook: the hook it is about.
        where: ``file:line`` in vLLM; empty if it was not found.
        problem: what is wrong; empty if the probe holds.
    """

    hook: Hook
    where: str
    problem: str = ""

    @property
    def holds(self) -> bool:
        return not self.problem


def check(vllm: Source) -> list[Finding]:
    """Every probe on a vLLM; on the installed one, on an installed Ray as well."""
    found = check_vllm(vllm)
    ray = installed_ray()
    if ray is not None and vllm.root == installed().root:
        found += check_ray(ray)
    return found


def check_vllm(vllm: Source) -> list[Finding]:
    """Every probe on a vLLM."""
    package = _own()
    found = [_wrapped(vllm, hook) for hook in WRAPS]
    for subclass, base, setting in OVERRIDES:
        found += _overridden(package, vllm, subclass, base, setting)
    found += [_read(vllm, hook) for hook in READS]
    found += [_imported(vllm, hook) for hook in _imports(package, "vllm")]
    return found


def check_ray(ray: Source) -> list[Finding]:
    """Every probe on a Ray."""
    found = [_wrapped(ray, hook) for hook in (*RAY_WRAPS, *RAY_OVERRIDES)]
    found += [_read(ray, hook) for hook in RAY_READS]
    found += [_imported(ray, hook) for hook in _imports(_own(), "ray")]
    return found


@cache
def _own() -> Source:
    """This package's own sources."""
    return Source(Path(__file__).parents[1])


def _wrapped(vllm: Source, hook: Hook) -> Finding:
    if "." not in hook.qualname:
        return _imported(vllm, hook)
    function = vllm.function(hook.module, hook.qualname)
    if function is None:
        return Finding(hook, "", "" if hook.optional else "it is not there")
    missing = [name for name in hook.parameters if name not in function.parameters]
    problem = f"it takes ({', '.join(function.parameters)}), no {', '.join(missing)}"
    return Finding(hook, _at(function), problem if missing else "")


def _overridden(
    package: Source, vllm: Source, subclass: str, base: str, setting: str
) -> Iterator[Finding]:
    """Each method that is marked ``@override``, and each abstract method of the base."""
    module, _, name = subclass.partition(":")
    base_module, _, base_name = base.partition(":")
    found = package.find_class(module, name)
    assert found is not None, subclass
    methods = {
        node.name: node
        for node in found[1].body
        if isinstance(node, ast.FunctionDef) and _is_override(node)
    }
    why = f"{name}, by {setting}"
    for method, node in methods.items():
        hook = Hook("overrides", f"{base}.{method}", why)
        theirs = vllm.function(base_module, f"{base_name}.{method}")
        if theirs is None:
            yield Finding(hook, "", "it is not there")
            continue
        ours = package.function(module, f"{name}.{method}")
        assert ours is not None
        yield Finding(hook, _at(theirs), _mismatch(ours, theirs) or _unheard(node, theirs))
    for method in sorted(vllm.abstract(base_module, base_name)):
        if package.function(module, f"{name}.{method}") is None:
            hook = Hook("overrides", f"{base}.{method}", why)
            yield Finding(hook, "", "every subclass must have it, and ours does not")


def _is_override(node: ast.FunctionDef) -> bool:
    return any(isinstance(d, ast.Name) and d.id == "override" for d in node.decorator_list)


def _mismatch(ours: Function, theirs: Function) -> str:
    """Why vLLM's calls would not fit our method; empty if they do."""
    unknown = [p for p in theirs.parameters if p not in ours.parameters and not ours.open]
    wanted = [p for p in ours.parameters if p in ours.required and p not in theirs.parameters]
    problems = []
    if unknown:
        problems.append(f"it takes {', '.join(unknown)}, which is not known here")
    if wanted:
        problems.append(f"it no longer takes {', '.join(wanted)}")
    return "; ".join(problems)


def _unheard(ours: ast.FunctionDef, theirs: Function) -> str:
    """Why our method's ``super()`` call would not fit vLLM's method; empty if it does."""
    for node in ast.walk(ours):
        match node:
            case ast.Call(
                func=ast.Attribute(value=ast.Call(func=ast.Name(id="super")), attr=ours.name)
            ) if not theirs.open:
                named = [k.arg for k in node.keywords if k.arg not in (None, *theirs.parameters)]
                if named:
                    return f"it does not take {', '.join(map(str, named))}, which is passed"
                passed = sum(not isinstance(a, ast.Starred) for a in node.args)
                if passed > len(theirs.parameters):
                    return f"it takes {len(theirs.parameters)} arguments, and gets {passed}"
    return ""


def _read(vllm: Source, hook: Hook) -> Finding:
    if "." not in hook.qualname:
        return _imported(vllm, hook, on_demand=False)
    file = vllm.attribute(hook.module, hook.qualname)
    return Finding(hook, str(file or ""), "" if file or hook.optional else "it is not there")


@cache
def _imports(sources: Source, package: str) -> list[Hook]:
    """Names that this package imports from vLLM, or Ray. Optional ones are inside a ``try``."""
    wanted: dict[str, Hook] = {}
    for module in sources.modules():
        guarded = {
            id(part)
            for node in ast.walk(module.tree)
            if isinstance(node, ast.Try)
            for part in ast.walk(node)
        }
        for node in ast.walk(module.tree):
            if not isinstance(node, ast.ImportFrom) or id(node) in guarded:
                continue
            if node.level or (node.module or "").partition(".")[0] != package:
                continue
            for alias in node.names:
                target = f"{node.module}:{alias.name}"
                why = str(module.file.relative_to(sources.root.parent))
                wanted.setdefault(target, Hook("imports", target, why))
    return list(wanted.values())


def _imported(vllm: Source, hook: Hook, on_demand: bool = True) -> Finding:
    module = vllm.module(hook.module)
    if module is None:
        return Finding(hook, "", f"there is no module {hook.module}")
    where = str(module.file.relative_to(vllm.root.parent))
    holds = vllm.has(hook.module, hook.qualname, on_demand)
    return Finding(hook, where, "" if holds else "it is not there")


def _at(function: Function) -> str:
    return f"{function.file}:{function.line}"


def installed() -> Source:
    """The vLLM that ``import vllm`` would find."""
    found = _installed("vllm")
    if found is None:
        raise UnsupportedError("vLLM is not installed")
    return found


def installed_ray() -> Source | None:
    """The Ray that ``import ray`` would find; None if it is not installed."""
    return _installed("ray")


def _installed(package: str) -> Source | None:
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        return None
    return Source(Path(spec.submodule_search_locations[0]))


def version() -> str:
    """The version of the installed vLLM, without a build's suffix."""
    return importlib.metadata.version("vllm").partition("+")[0]


@contextmanager
def _nothing_kept() -> Iterator[None]:
    """Drop the parsed sources afterwards: a server does not need them again."""
    collects = gc.isenabled()
    gc.disable()  # all trees become garbage together
    try:
        yield
    finally:
        _own.cache_clear()
        forget()
        if collects:
            gc.enable()
        gc.collect()


@cache
def require() -> str | None:
    """Refuse the installed vLLM if a probe fails.

    Returns:
        A warning if every probe holds and this version is not tested.

    Raises:
        UnsupportedError: naming each probe that fails.
    """
    with _nothing_kept():
        failed = _failed(check_vllm(installed()))
    if failed:
        raise UnsupportedError(
            f"vLLM {version()}: {failed}. Tested with {', '.join(KNOWN_VERSIONS)}; "
            "`vllm-sink doctor --hooks` shows every probe"
        )
    if version() not in KNOWN_VERSIONS:
        return (
            f"vLLM {version()} has not been tested with this vllm-sink (tested: "
            f"{', '.join(KNOWN_VERSIONS)}); everything it needs is there, so it starts"
        )
    return None


@cache
def require_ray() -> None:
    """Refuse the installed Ray if a probe fails.

    Raises:
        UnsupportedError: naming each probe that fails.
    """
    ray = installed_ray()
    if ray is None:
        raise UnsupportedError("Ray is not installed")
    with _nothing_kept():
        failed = _failed(check_ray(ray))
    if failed:
        raise UnsupportedError(
            f"Ray {importlib.metadata.version('ray')}: {failed}; "
            "`vllm-sink doctor --hooks` shows every probe"
        )


def _failed(findings: list[Finding]) -> str:
    """Which probes fail, and why; empty if none does."""
    return "; ".join(f"{f.hook.target}: {f.problem}" for f in findings if not f.holds)
