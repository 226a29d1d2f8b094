"""Shared by tests that read sources."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from vllm_sink.compat import source


@pytest.fixture(autouse=True, scope="module")
def nothing_kept() -> Iterator[None]:
    """Drop parsed sources: they would slow the garbage collection of later tests' engines."""
    yield
    source.forget()
