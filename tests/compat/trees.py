"""Cheap copies of the installed vLLM, or Ray: links, except for changed files."""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path

from vllm_sink.compat.hooks import Hook
from vllm_sink.compat.source import Source


def installed(package: str = "vllm") -> Path:
    spec = find_spec(package)
    assert spec is not None
    assert spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0])


def linked(folder: Path, package: str = "vllm") -> Path:
    """A tree of links to the installed package; ``folder`` can stand on ``PYTHONPATH``."""
    root = folder / package
    root.mkdir(parents=True)
    for entry in installed(package).iterdir():
        if entry.name != "__pycache__":
            (root / entry.name).symlink_to(entry)
    return root


def own_copy(root: Path, file: Path) -> Path:
    """A file of the tree (relative to its root), as one that may be changed."""
    at = root
    for part in file.parts[:-1]:
        at = at / part
        if at.is_symlink():
            real = at.resolve()
            at.unlink()
            at.mkdir()
            for entry in real.iterdir():
                if entry.name != "__pycache__":
                    (at / entry.name).symlink_to(entry)
    target = root / file
    if target.is_symlink():
        text = target.read_text(encoding="utf-8")
        target.unlink()
        target.write_text(text, encoding="utf-8")
    return target


def rename(root: Path, hook: Hook) -> None:
    """Rename a hook's target where it is defined."""
    original = installed(root.name)
    source = Source(original)
    owner, _, name = hook.qualname.rpartition(".")
    files: list[Path] = []
    for module, cls in source.lineage(hook.module, owner) if owner else ():
        text = module.file.read_text(encoding="utf-8").splitlines()
        body = "\n".join(text[cls.lineno - 1 : cls.end_lineno])
        if re.search(rf"\b{name}\b", body):
            files.append(module.file)
    if not files:
        # A name in the module, wherever it comes from.
        found = source.module(hook.module)
        assert found is not None
        files.append(found.file)
    for file in files:
        copy = own_copy(root, file.relative_to(original))
        text = copy.read_text(encoding="utf-8")
        copy.write_text(re.sub(rf"\b{name}\b", f"{name}_renamed", text), encoding="utf-8")
