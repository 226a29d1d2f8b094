"""The environment of every test; set before vLLM is imported."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

# Two threads on two busy cores are slower than one.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# vLLM would bind every engine to the same core.
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
# In this process: a test can look at the scheduler and at the block pool.
os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
if shutil.which("nvidia-smi") is None:
    # vLLM compiles its sampler even so; tiny models take longer to compile than to run.
    os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


#: Tests that cannot run in this process are deselected, not skipped, so that a skip names
#: something that can be fixed: a marker, whether its tests run here, and why not.
LEFT_OUT: dict[str, tuple[Callable[[], bool], str]] = {
    "gpu": (_has_gpu, "no NVIDIA GPU on this machine"),
    "interpreted": (
        lambda: os.environ.get("TRITON_INTERPRET") == "1",
        "run by tests/unit/test_fused_kernel.py::test_in_the_interpreter in its own process",
    ),
}
#: How many of each marker were deselected; an xdist worker reports them to its controller.
COUNTS = pytest.StashKey[dict[str, int]]()


@pytest.hookimpl(tryfirst=True)  # before xdist reads the markers
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect what cannot run here; one worker runs all tests that share engines and servers."""
    counts = config.stash.setdefault(COUNTS, {})
    for marker, (runs_here, _) in LEFT_OUT.items():
        marked = [item for item in items if item.get_closest_marker(marker)]
        if marked and not runs_here():
            counts[marker] = len(marked)
            items[:] = [item for item in items if not item.get_closest_marker(marker)]
            config.hook.pytest_deselected(items=marked)
    for item in items:
        if item.get_closest_marker("xdist_group") is None:
            item.add_marker(pytest.mark.xdist_group(item.nodeid.partition("::")[0]))


@pytest.hookimpl(tryfirst=True)  # before the terminal's, which ends with the summary
def pytest_sessionfinish(session: pytest.Session) -> None:
    """GPU tests asked for on a machine without a GPU are no failure: the summary says so."""
    counts = session.config.stash.get(COUNTS, {})
    output = getattr(session.config, "workeroutput", None)
    if output is not None:
        output["left_out"] = counts
    if session.exitstatus == pytest.ExitCode.NO_TESTS_COLLECTED and "gpu" in counts:
        session.exitstatus = pytest.ExitCode.OK


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Every xdist worker collects the same tests; the controller collects none."""
    counts = getattr(node, "workeroutput", {}).get("left_out", {})
    node.config.stash.setdefault(COUNTS, {}).update(counts)


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """What was deselected, and why."""
    for marker, count in config.stash.get(COUNTS, {}).items():
        reason = LEFT_OUT[marker][1]
        terminalreporter.write_line(f"LEFT OUT [{count}] tests marked {marker!r}: {reason}")


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where tiny models are made, once a session."""
    return tmp_path_factory.mktemp("tiny")
