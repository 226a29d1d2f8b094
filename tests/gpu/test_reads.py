"""What this package reads and wraps of vLLM's V2 runner is listed in ``hooks``."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.compat.record import recorded
from tests.e2e.engines import tiny
from vllm_sink.compat import hooks

pytestmark = pytest.mark.gpu

V2 = "vllm.v1.worker.gpu."


def test_whatever_is_read_is_listed_and_whatever_is_listed_is_installed(tiny_folder: Path) -> None:
    found = recorded(tiny("llama-gqa", tiny_folder), "engine")
    assert found["unlisted"] == {}
    listed = {hook.target for hook in hooks.WRAPS}
    assert set(found["wrapped"]) - listed == set()
    assert {target for target in listed if target.startswith(V2)} <= set(found["wrapped"])
    # Streams here use each hook into the V2 runner: one that nothing reads can go.
    reads = {hook.target for hook in hooks.READS if hook.target.startswith(V2)}
    assert reads - set(found["read"]) == set()
