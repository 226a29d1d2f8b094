"""Times that ``benchmarks.serving`` records: of its phases, and of the rounds of a side."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class Clock:
    """How long the phases of a run took."""

    def __init__(self) -> None:
        self.phases: dict[str, float] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        begin = time.perf_counter()
        yield
        self.phases[name] = round(time.perf_counter() - begin, 2)
        print(f"[{name}: {self.phases[name]:.1f} s]", flush=True)


def summary(values: list[float], tokens: int) -> dict[str, Any]:
    """Milliseconds of the rounds; ``tokens``: computed in that time."""
    first, median, third = statistics.quantiles(values, n=4, method="inclusive")
    return {
        "median_ms": median,
        "min_ms": min(values),
        "quartile1_ms": first,
        "quartile3_ms": third,
        "max_ms": max(values),
        "tokens_per_second": 1000 * tokens / median,
        "rounds_ms": values,
    }
