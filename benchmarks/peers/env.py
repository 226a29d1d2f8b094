"""Environments of the peers: each has one of its own, with pinned versions.

    python -m benchmarks.peers.env [NAME ...]

Makes ``build/peers/NAME`` from ``requirements/NAME.txt`` (all of them without a name), unless that
file is unchanged. Needs a package index; uses pip's settings.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build" / "peers"
REQUIREMENTS = Path(__file__).parent / "requirements"
NAMES = sorted(path.stem for path in REQUIREMENTS.glob("*.txt") if ".no-deps" not in path.name)


def python(name: str) -> Path:
    """The interpreter of that environment."""
    return BUILD / name / "bin" / "python"


def digest(name: str) -> str:
    """Changes when the environment must be rebuilt."""
    told = b"".join(path.read_bytes() for path in lists(name)) + sys.version.encode()
    return hashlib.sha256(told).hexdigest()


def lists(name: str) -> list[Path]:
    """What to install: its requirements, then those to take without their own."""
    files = [REQUIREMENTS / f"{name}.txt", REQUIREMENTS / f"{name}.no-deps.txt"]
    return [path for path in files if path.is_file()]


def is_ready(name: str) -> bool:
    stamp = BUILD / name / "stamp"
    return stamp.is_file() and stamp.read_text() == digest(name)


def make(name: str) -> None:
    """Makes the environment, unless it is up to date."""
    if is_ready(name):
        print(f"[peers] {name}: up to date", flush=True)
        return
    folder = BUILD / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    print(f"[peers] {name}: installing", flush=True)
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    pip = [str(python(name)), "-m", "pip", "install", "--quiet", "--no-compile"]
    environment = os.environ | {"PIP_USER": "0", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    for path in lists(name):
        alone = ["--no-deps"] if ".no-deps" in path.name else []
        subprocess.run([*pip, *alone, "-r", str(path)], check=True, env=environment)
    (folder / "stamp").write_text(digest(name))
    print(f"[peers] {name}: made", flush=True)


def main() -> None:
    names = sys.argv[1:] or NAMES
    if unknown := set(names) - set(NAMES):
        raise SystemExit(f"{', '.join(sorted(unknown))}: no such peer; there are {NAMES}")
    for name in names:
        make(name)


if __name__ == "__main__":
    main()
