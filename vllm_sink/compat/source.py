"""Reads the sources of a vLLM, installed or only unpacked, without importing it.

A class is followed to where it is defined (``from x import Y``), a method to the base class that
has it.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

_Function = ast.FunctionDef | ast.AsyncFunctionDef


@cache
def _parsed(file: Path, changed: int) -> ast.Module:
    del changed  # part of the key
    return ast.parse(file.read_text(encoding="utf-8"))


@cache
def _definitions(tree: ast.Module) -> tuple[ast.stmt, ...]:
    return tuple(_flat(tree.body))


def _flat(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    for node in body:
        yield node
        if isinstance(node, ast.If):
            yield from _flat([*node.body, *node.orelse])
        elif isinstance(node, ast.Try):
            handlers = [part for handler in node.handlers for part in handler.body]
            yield from _flat([*node.body, *handlers, *node.orelse])


@dataclass(frozen=True)
class Function:
    """The definition of a function or method.

    Attributes:
        file: its path below the package's parent folder.
        line: its line.
        parameters: names, ``self`` and ``cls`` left out.
        required: those without a default.
        open: it takes any further arguments (``*args`` or ``**kwargs``).
    """

    file: Path
    line: int
    parameters: tuple[str, ...]
    required: frozenset[str]
    open: bool


@dataclass(frozen=True)
class Module:
    """One source file, parsed."""

    name: str
    file: Path
    tree: ast.Module

    def definitions(self) -> tuple[ast.stmt, ...]:
        """Top-level statements, those below ``if`` and ``try`` too."""
        return _definitions(self.tree)

    def imported(self, name: str) -> tuple[str, str] | None:
        """``(module, name)`` behind a name that this module imports with ``from``."""
        for node in self.definitions():
            if not isinstance(node, ast.ImportFrom):
                continue
            for alias in node.names:
                if (alias.asname or alias.name) == name:
                    return self._absolute(node), alias.name
        return None

    def _absolute(self, node: ast.ImportFrom) -> str:
        if not node.level:
            return node.module or ""
        package = self.name.split(".")
        drop = node.level - (self.file.name == "__init__.py")
        package = package[: len(package) - drop] if drop else package
        return ".".join([*package, *([node.module] if node.module else [])])


def forget() -> None:
    """Drop every parsed tree.

    They are millions of objects, which would make each later garbage collection of the process take
    a second.
    """
    for read in (_parsed, _definitions, _attributes):
        read.cache_clear()


class Source:
    """The sources of one package.

    Args:
        root: the package's own folder, ``.../site-packages/vllm``.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.module = cache(self._module)
        self.lineage = cache(self._lineage)

    def _module(self, name: str) -> Module | None:
        package, _, rest = name.partition(".")
        if package != self.root.name:
            return None
        path = self.root.joinpath(*rest.split(".")) if rest else self.root
        for file in (path.with_suffix(".py"), path / "__init__.py"):
            if file.is_file():
                return Module(name, file, _parsed(file.resolve(), file.stat().st_mtime_ns))
        return None

    def modules(self) -> Iterator[Module]:
        """All modules."""
        for file in sorted(self.root.rglob("*.py")):
            parts = file.relative_to(self.root.parent).with_suffix("").parts
            found = self.module(".".join(parts[:-1] if parts[-1] == "__init__" else parts))
            if found is not None:
                yield found

    def has(self, module: str, name: str, on_demand: bool = True) -> bool:
        """Whether ``from module import name`` would find something.

        Args:
            module: the module's name.
            name: the name to find in it.
            on_demand: accept any name of a module with ``__getattr__``.
        """
        found = self.module(module)
        if found is None:
            return False
        for node in found.definitions():
            if isinstance(node, (_Function, ast.ClassDef)) and node.name == name:
                return True
            if isinstance(node, (ast.Assign, ast.AnnAssign)):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                if any(isinstance(t, ast.Name) and t.id == name for t in targets):
                    return True
            if isinstance(node, ast.Import) and any(
                (a.asname or a.name.partition(".")[0]) == name for a in node.names
            ):
                return True
            if on_demand and isinstance(node, ast.FunctionDef) and node.name == "__getattr__":
                return True
        if found.imported(name) is not None:
            return True
        return self.module(f"{module}.{name}") is not None

    def find_class(self, module: str, name: str) -> tuple[Module, ast.ClassDef] | None:
        """A class, followed through imports."""
        found = self.module(module)
        if found is None:
            return None
        for node in found.definitions():
            if isinstance(node, ast.ClassDef) and node.name == name:
                return found, node
        behind = found.imported(name)
        return None if behind is None else self.find_class(*behind)

    def _lineage(self, module: str, name: str) -> tuple[tuple[Module, ast.ClassDef], ...]:
        """A class and its bases within the package, nearest first."""
        found = self.find_class(module, name)
        if found is None:
            return ()
        line = [found]
        for base in found[1].bases:
            base = base.value if isinstance(base, ast.Subscript) else base
            if isinstance(base, ast.Name):
                line += self.lineage(found[0].name, base.id)
        return tuple(line)

    def function(self, module: str, qualname: str) -> Function | None:
        """``Class.method``, inherited ones too, or a function of the module."""
        owner, _, name = qualname.rpartition(".")
        if owner:
            for where, cls in self.lineage(module, owner):
                for node in cls.body:
                    if isinstance(node, _Function) and node.name == name:
                        return self._describe(where, node)
            return None
        found = self.module(module)
        for node in found.definitions() if found else ():
            if isinstance(node, _Function) and node.name == name:
                assert found is not None
                return self._describe(found, node)
        behind = found.imported(name) if found else None
        return None if behind is None else self.function(*behind)

    def _describe(self, module: Module, node: _Function) -> Function:
        spec = node.args
        positional = [a.arg for a in (*spec.posonlyargs, *spec.args)]
        static = any(
            isinstance(d, ast.Name) and d.id == "staticmethod" for d in node.decorator_list
        )
        if positional and positional[0] in ("self", "cls") and not static:
            positional = positional[1:]
        optional = set(positional[len(positional) - len(spec.defaults) :] if spec.defaults else ())
        optional |= {
            a.arg for a, d in zip(spec.kwonlyargs, spec.kw_defaults, strict=True) if d is not None
        }
        names = (*positional, *(a.arg for a in spec.kwonlyargs))
        return Function(
            file=module.file.relative_to(self.root.parent),
            line=node.lineno,
            parameters=names,
            required=frozenset(names) - optional,
            open=spec.vararg is not None or spec.kwarg is not None,
        )

    def abstract(self, module: str, owner: str) -> set[str]:
        """Abstract methods of a class."""
        names: dict[str, bool] = {}
        for _, cls in self.lineage(module, owner):
            for node in cls.body:
                if isinstance(node, _Function):
                    marks = [d.id for d in node.decorator_list if isinstance(d, ast.Name)]
                    names.setdefault(node.name, "abstractmethod" in marks)
        return {name for name, is_abstract in names.items() if is_abstract}

    def attribute(self, module: str, qualname: str) -> Path | None:
        """Where ``Class.name`` is a field, a property, or set on ``self``; None if it is not."""
        owner, _, name = qualname.rpartition(".")
        for where, cls in self.lineage(module, owner):
            if name in _attributes(cls):
                return where.file.relative_to(self.root.parent)
        return None


@cache
def _attributes(cls: ast.ClassDef) -> frozenset[str]:
    """Attributes of an object of this class: its body's, and those its methods set on ``self``."""
    names: set[str] = set()
    for node in _flat(cls.body):
        if isinstance(node, (_Function, ast.ClassDef)):
            names.add(node.name)
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            # An annotation alone is a field of a dataclass, a NamedTuple or a Struct.
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names |= {n.id for t in targets for n in ast.walk(t) if isinstance(n, ast.Name)}
        if isinstance(node, _Function) and (first := _first_parameter(node)):
            names |= _given_to(first, node.body)
    return frozenset(names)


def _first_parameter(method: _Function) -> str | None:
    """A method's name for its object, or its class; None for a static one."""
    positional = [*method.args.posonlyargs, *method.args.args]
    static = any(isinstance(d, ast.Name) and d.id == "staticmethod" for d in method.decorator_list)
    return positional[0].arg if positional and not static else None


def _given_to(owner: str, body: Iterable[ast.AST]) -> set[str]:
    """Attributes that statements assign to the variable ``owner``, nested functions included.

    Neither an annotation alone nor ``owner.x += 1`` makes an attribute.
    """
    names: set[str] = set()
    for node in body:
        match node:
            case ast.Attribute(value=ast.Name(id=variable), ctx=ast.Store()) if variable == owner:
                names.add(node.attr)
            case ast.AnnAssign(value=None) | ast.AugAssign() | ast.ClassDef():
                continue
            case ast.FunctionDef() | ast.AsyncFunctionDef() if _shadows(node, owner):
                continue
        names |= _given_to(owner, ast.iter_child_nodes(node))
    return names


def _shadows(function: _Function, name: str) -> bool:
    """Whether a nested function has a parameter of that name: it is another object there."""
    spec = function.args
    parameters = [*spec.posonlyargs, *spec.args, *spec.kwonlyargs, spec.vararg, spec.kwarg]
    return any(parameter is not None and parameter.arg == name for parameter in parameters)
