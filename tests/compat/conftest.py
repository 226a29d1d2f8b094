"""What is common to tests that read sources."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from vllm_sink.compat import source


@pytest.fixture(autouse=True, scope="module")
def nothing_kept() -> Iterator[None]:
    """Later tests in this process make engines, which collect garbage among all that is kept."""
    yield
    source.forget()
