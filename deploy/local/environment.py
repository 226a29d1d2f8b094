"""A virtual environment under construction: steps with their times, a log, a stamp at the end."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import NoReturn

import indexes

UV = "uv==0.13.9"


class Venv:
    """The environment under construction. What a tool prints goes to a log, shown if it fails.

    ``lock`` is the file descriptor of a lock that lasts as long as any process started here.
    """

    def __init__(self, path: Path, lock: int) -> None:
        self.path = path
        self.lock = lock
        self.python = path / "bin" / "python"
        self.log = path / "env.log"
        self.stamp = path / "env.stamp"
        self.unfinished = path / "env.unfinished"
        self.kind = path / "env.kind"
        self.site = path / f"lib/python3.{sys.version_info.minor}/site-packages"
        self._step_began: float | None = None
        self._uv_environment: dict[str, str] = {}

    def step(self, label: str) -> None:
        """Begins a step; the one before it has ended."""
        self.end_step()
        print(f"[env] {label:<64}", end="", flush=True)
        self._step_began = time.monotonic()

    def end_step(self) -> None:
        if self._step_began is not None:
            print(f"{time.monotonic() - self._step_began:6.1f} s", flush=True)
        self._step_began = None

    def try_run(self, *command: str | Path) -> str | None:
        """Runs a command. Its output where it failed, else None."""
        result = subprocess.run(
            command,
            cwd=self.path.parent,
            env=os.environ | {"PIP_USER": "0"} | self._uv_environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            pass_fds=(self.lock,),
        )
        with self.log.open("a", encoding="utf-8") as log:
            log.write(f"$ {' '.join(map(str, command))}\n{result.stdout}\n")
        return result.stdout if result.returncode else None

    def run(self, *command: str | Path) -> None:
        output = self.try_run(*command)
        if output is not None:
            self.fail(output)

    def fail(self, output: str) -> NoReturn:
        # What is there can be built on: a package is there whole, or not at all.
        self.unfinished.unlink(missing_ok=True)
        print("failed", flush=True)
        raise SystemExit(f"{output}\n[env] the step above failed; log: {self.log}")

    def pip(self, *arguments: str | Path) -> tuple[str | Path, ...]:
        return (self.python, "-m", "pip", "--disable-pip-version-check", "--no-input", *arguments)

    def add_uv(self) -> None:
        self.step(UV)
        self.run(*self.pip("install", UV))
        self._uv_environment = indexes.uv_environment(self.python)

    def uv(self, *arguments: str | Path) -> tuple[str | Path, ...]:
        return (self.path / "bin" / "uv", *arguments, "--python", self.python)

    def is_usable(self, kind: str) -> bool:
        """Whether an environment of that kind and of this very Python is there, whole."""
        if self.unfinished.exists() or not self.python.exists() or not self.site.is_dir():
            return False
        if self.kind.is_file() and self.kind.read_text() != kind:
            return False
        return self.try_run(self.python, "-c", "import pip") is None

    def begin(self, kind: str, *options: str) -> None:
        """Makes an environment, or takes the one that is there and can be built on."""
        kind = f"{kind} in {self.path}"  # one that was moved has the old path in its scripts
        if not self.is_usable(kind):
            self._create(*options)
        self.unfinished.touch()
        self.kind.write_text(kind)

    def _create(self, *options: str) -> None:
        if self.path.exists():
            self.step("removing one that is unfinished, or of another kind")
            shutil.rmtree(self.path)
        self.path.mkdir()
        self.unfinished.touch()
        self.step(f"virtual environment, Python {sys.version_info.major}.{sys.version_info.minor}")
        self.run(sys.executable, "-m", "venv", *options, self.path)

    def _installed(self) -> set[str]:
        """Names and versions of all distributions, as their folders name them."""
        return {folder.name for folder in self.site.glob("*.dist-info")}

    def finish(self, digest: str) -> None:
        self.end_step()
        self.stamp.write_text("\n".join([digest, *sorted(self._installed())]))
        self.unfinished.unlink()

    def is_finished(self, digest: str) -> bool:
        """Whether it was built from the same inputs, and all that was installed then is there."""
        if self.unfinished.exists() or not self.stamp.is_file():
            return False
        built_from, *installed = self.stamp.read_text().splitlines()
        return built_from == digest and self._installed().issuperset(installed)
