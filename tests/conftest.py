"""What every test runs under; set before vLLM is imported."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

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


@pytest.hookimpl(tryfirst=True)  # before xdist reads the marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests of one file share its engines and servers: one worker runs them all."""
    for item in items:
        if item.get_closest_marker("xdist_group") is None:
            item.add_marker(pytest.mark.xdist_group(item.nodeid.partition("::")[0]))


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where tiny models are made, once a session."""
    return tmp_path_factory.mktemp("tiny")
