"""vLLM with every patch and no attribute replaced does what vLLM with every hook does."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from patches.index import Head, heads, rendered
from tests.compat.trees import linked, own_copy
from vllm_sink.compat import hooks, probes

ROOT = Path(__file__).parents[2]
PATCHES = sorted((ROOT / "patches").glob("vllm-*/*.patch"))
#: The core of the suite: paths of a stream, rollovers, request options, statistics.
CORE = (
    "tests/e2e/test_paths.py",
    "tests/e2e/test_rollover.py",
    "tests/e2e/test_metrics.py",
    "tests/compat/check_patched.py",
    "-k",
    "paths or every_token or sampling or rolled or patched",
)

for_this_version = pytest.mark.skipif(
    not probes.version().startswith("0.32."), reason="the patches are for vLLM 0.32"
)


def git(root: Path, *command: str | Path) -> str:
    done = subprocess.run(["git", *command], cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def apply(folder: Path, patch: Path) -> None:
    for file in re.findall(r"^\+\+\+ b/vllm/(\S+)$", patch.read_text(), re.MULTILINE):
        own_copy(folder / "vllm", Path(file))
    git(folder, "apply", patch)


@pytest.fixture(scope="module")
def patched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A vLLM with every patch."""
    folder = tmp_path_factory.mktemp("patched")
    linked(folder)
    for patch in PATCHES:
        apply(folder, patch)
    return folder


def pytest_in(folder: Path, *arguments: str) -> None:
    """Under the vLLM in ``folder``, in a process of its own."""
    path = os.pathsep.join([str(folder), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *arguments],
        env={**os.environ, "PYTHONPATH": path, "PATCHED_VLLM": str(folder)},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-5000:]


def test_the_index_is_made_from_the_heads() -> None:
    assert (ROOT / "patches" / "README.md").read_text(encoding="utf-8") == rendered()


def test_every_wrap_has_its_patch() -> None:
    replaced = {name for head in heads() for name in head.replaces}
    assert replaced == {hook.qualname for hook in hooks.WRAPS}
    assert all(isinstance(head, Head) and head.why and head.until for head in heads())


@for_this_version
@pytest.mark.parametrize("patch", PATCHES, ids=[p.stem for p in PATCHES])
def test_each_applies_alone(patch: Path, tmp_path: Path) -> None:
    linked(tmp_path)
    apply(tmp_path, patch)


@for_this_version
def test_their_own_tests_pass(patched: Path) -> None:
    pytest_in(patched, str(patched / "tests" / "plugins_tests"), "--rootdir", str(patched))


@pytest.mark.slow
@for_this_version
def test_the_core_of_the_suite_passes_on_a_patched_vllm(patched: Path) -> None:
    pytest_in(patched, "-m", "not slow", *CORE)
