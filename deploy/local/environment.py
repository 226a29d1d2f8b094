"""A virtual environment under construction: steps with their times, a log, a stamp at the end."""

import importlib.metadata
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import NoReturn


class Venv:
    """The environment under construction. pip's output goes to a log, shown where a step fails."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.python = path / "bin" / "python"
        self.log = path / "env.log"
        self.stamp = path / "env.stamp"
        self.unfinished = path / "env.unfinished"
        self.kind = path / "env.kind"
        self.site = path / f"lib/python3.{sys.version_info.minor}/site-packages"
        self._step_began: float | None = None
        self._compiler: subprocess.Popen[bytes] | None = None

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
        environment = os.environ | {"PIP_USER": "0"}
        result = subprocess.run(
            command,
            cwd=self.path.parent,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        with self.log.open("a", encoding="utf-8") as log:
            log.write(f"$ {' '.join(map(str, command))}\n{result.stdout}\n")
        return result.stdout if result.returncode else None

    def run(self, *command: str | Path) -> None:
        output = self.try_run(*command)
        if output is not None:
            self.fail(output)

    def fail(self, output: str) -> NoReturn:
        # pip undoes a failed installation itself, so what is there can be built on.
        self.unfinished.unlink(missing_ok=True)
        if self._compiler:
            self._compiler.kill()
        print("failed", flush=True)
        raise SystemExit(f"{output}\n[env] the step above failed; log: {self.log}")

    def pip(self, *arguments: str | Path) -> tuple[str | Path, ...]:
        quiet = ("--disable-pip-version-check", "--no-input")
        return (self.python, "-m", "pip", *quiet, *arguments)

    def install(self, *arguments: str | Path) -> None:
        # pip would compile 20,000 files, one by one, of which most are never imported: two minutes.
        self.run(*self.pip("install", "--no-compile", *arguments))

    def compile_beside(self, *packages: str) -> None:
        """Compiles packages while pip waits for the index: else their first import would."""
        folders = [str(self.site / package) for package in packages]
        command = [str(self.python), "-m", "compileall", "-q", *folders]
        self._compiler = subprocess.Popen(command, stdout=subprocess.DEVNULL)

    def await_compiler(self) -> None:
        if self._compiler:
            self._compiler.wait()

    def distribution(self, name: str) -> importlib.metadata.Distribution | None:
        found = importlib.metadata.distributions(name=name, path=[str(self.site)])
        return next(iter(found), None)

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

    def finish(self, digest: str) -> None:
        self.end_step()
        self.stamp.write_text(digest)
        self.unfinished.unlink()

    def is_finished(self, digest: str) -> bool:
        return self.stamp.is_file() and self.stamp.read_text() == digest

    def update_pip(self) -> None:
        """Needs half the time of the one that Python 3.11 brings for the same resolution."""
        pip = self.distribution("pip")
        if pip is None or int(pip.version.partition(".")[0]) < 25:
            self.step("pip")
            self.install("--upgrade", "pip")
