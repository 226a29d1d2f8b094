"""A short fuzzing campaign, in CI; ``make fuzz`` is the long one."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.e2e.engines import tiny
from tests.fuzz.__main__ import fuzz, judge

pytestmark = pytest.mark.xdist_group("fuzz")

SECONDS = float(os.environ.get("FUZZ_SECONDS", "100"))


def test_no_request_hurts_another(tiny_folder: Path, tmp_path: Path) -> None:
    report = fuzz(tiny("llama-gqa", tiny_folder), tmp_path, SECONDS, clients=3, seed=7, stock=True)
    assert judge(report) == []
    # The campaign was not empty.
    assert report.sent > 100
    assert len(report.routes) > 15
    assert report.bystander_answers >= 1
