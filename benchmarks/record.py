"""What every result file records about its run."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

#: Columns of a line of a result file, curves aside.
LINE = 160


def _commit() -> str | None:
    try:
        return subprocess.run(
            ["git", "describe", "--always", "--dirty"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0]} x{len(names)}" if names else platform.machine()


def _arguments() -> list[str]:
    """The command line, without this machine's folders."""
    return [Path(a).name if Path(a).is_absolute() else a for a in sys.argv[1:]]


def provenance() -> dict[str, Any]:
    """Versions, hardware, commit and command line of this run."""
    import torch

    def version(name: str) -> str | None:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            return None

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else _processor()
    packages = ("vllm-sink", "vllm", "torch", "transformers")
    return {
        "versions": {name: version(name) for name in packages} | {"python": sys.version.split()[0]},
        "hardware": device,
        "commit": _commit(),
        "command": ["python", "-m", sys.modules["__main__"].__spec__.name, *_arguments()]
        if sys.modules["__main__"].__spec__
        else _arguments(),
    }


def formatted(value: Any, indent: int = 0) -> str:
    """JSON for people and for git: a curve, a row of a table and what fits it is one line.

    Args:
        value: plain data; nine digits of its floats are written: a float32 needs no more.
        indent: of the line that it begins on, spaces.
    """
    line = json.dumps(_rounded(value))
    if not isinstance(value, dict | list | tuple) or _is_curve(value) or indent + len(line) <= LINE:
        return line
    inner, outer = "\n" + " " * (indent + 1), "\n" + " " * indent
    if isinstance(value, dict):
        parts = [f"{json.dumps(str(k))}: {formatted(v, indent + 1)}" for k, v in value.items()]
        return "{" + inner + f",{inner}".join(parts) + outer + "}"
    rows = (json.dumps(_rounded(v)) if _is_row(v) else formatted(v, indent + 1) for v in value)
    return "[" + inner + f",{inner}".join(rows) + outer + "]"


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(v) for v in value]
    return float(f"{value:.9g}") if isinstance(value, float) else value


def _is_curve(value: Any) -> bool:
    """Numbers, or lists of them."""
    if isinstance(value, list | tuple):
        return all(_is_curve(v) for v in value)
    return value is None or isinstance(value, int | float)


def _is_row(value: Any) -> bool:
    """One of a table: named values, or a level more of them."""
    if isinstance(value, dict):
        return all(_is_row(v) for v in value.values())
    return not isinstance(value, list | tuple)


def write(path: Path, result: dict[str, Any]) -> None:
    """Write a result as JSON, with its provenance."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(formatted(result | {"run": provenance()}) + "\n")


def earlier(path: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """The existing result if it was made with these settings; else an empty one."""
    told: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    return told if {key: told.get(key) for key in settings} == settings else {}
