#!/usr/bin/env python3
"""Writes ``requirements/cpu.txt`` and ``cuda.txt``: all versions that ``make env`` installs.

    .venv/bin/python deploy/local/lock.py [flags of `uv pip compile`, such as --upgrade]

A version that is in the file stays while pyproject.toml admits it; ``--upgrade-package NAME``
raises one, ``--upgrade`` all. Resolved for Python 3.11 on x86-64 Linux (glibc 2.34), where the
tests run. Elsewhere the versions hold too; what only another platform needs is not locked.
"""

import subprocess
import sys
from pathlib import Path

import indexes

ROOT = Path(__file__).resolve().parents[2]
REQUIREMENTS = ROOT / "requirements"
EXCLUDES = REQUIREMENTS / "cpu-excludes.txt"
TESTED = ("--python-version=3.11", "--python-platform=x86_64-manylinux_2_34")


def lock_of(device: str) -> Path:
    return REQUIREMENTS / f"{device}.txt"


def wanted(device: str) -> list[str]:
    """uv's arguments for what pyproject.toml asks for on a device."""
    extras = [f"--extra={name}" for name in (device, "dev", "ray")]
    return extras + ([f"--excludes={EXCLUDES}"] if device == "cpu" else [])


def compile_command(device: str, output: Path) -> list[str | Path]:
    """Resolves into ``output``; versions that the file has stay where they can."""
    # The CPU build of vLLM names one torch, X+cpu, and env.py takes X where the index has no other.
    unlocked = ["--no-emit-package=torch"] if device == "cpu" else []
    form = ["--quiet", "--no-header", "--no-annotate", *unlocked, f"--output-file={output}"]
    return ["pip", "compile", ROOT / "pyproject.toml", *wanted(device), *form]


def install_command(device: str, locked: Path) -> list[str | Path]:
    pyproject = ROOT / "pyproject.toml"
    given = wanted(device)
    return ["pip", "install", "--requirements", pyproject, *given, "--constraints", locked]


def main() -> None:
    uv = Path(sys.executable).with_name("uv")
    environment = indexes.uv_environment(Path(sys.executable))
    for device in ("cpu", "cuda"):
        if device == "cuda":  # vLLM's torch==X is met by X+cpu too, where another index has that
            environment = {k: v for k, v in environment.items() if k not in indexes.ADDITIONAL}
        path = lock_of(device)
        command = [uv, *compile_command(device, path), *TESTED, *sys.argv[1:]]
        subprocess.run(command, cwd=ROOT, env=environment, check=True)
        print(f"[lock] {path.relative_to(ROOT)}: {len(path.read_text().splitlines())} packages")


if __name__ == "__main__":
    main()
