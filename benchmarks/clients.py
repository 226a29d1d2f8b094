"""Clients that measure: background streams, and a request beside them."""

from __future__ import annotations

import threading
import time
from typing import Any

import numpy as np

from benchmarks.served import Served


class Live:
    """Streams that run until they are closed, with the arrival time of each token.

    Args:
        served: the server.
        count: how many.
        prompt_tokens: of each, drawn at random; they generate without end.
        vocabulary: token ids are drawn below it.
    """

    def __init__(self, served: Served, count: int, prompt_tokens: int, vocabulary: int) -> None:
        self.served = served
        self.arrived: list[list[float]] = [[] for _ in range(count)]
        self.errors: list[str] = []
        self._over = threading.Event()
        self._prompts = np.random.default_rng(count).integers(
            10, vocabulary, (count, prompt_tokens)
        )
        self._threads = [threading.Thread(target=self._follow, args=(i,)) for i in range(count)]

    def __enter__(self) -> Live:
        for thread in self._threads:
            thread.start()
        while not all(len(arrived) > 5 or self.errors for arrived in self.arrived):
            time.sleep(0.05)
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()
        if self.errors:
            raise SystemExit("\n".join(self.errors))

    def _follow(self, i: int) -> None:
        body = {
            "model": "model",
            "prompt": self._prompts[i].tolist(),
            "max_tokens": 1 << 40,
            "ignore_eos": True,
            "seed": i,
        }
        events = self.served.stream("/v1/completions", body)
        try:
            for _ in events:
                self.arrived[i].append(time.perf_counter())
                if self._over.is_set():
                    return
            self.errors.append(f"stream {i} ended by itself")
        except Exception as error:
            self.errors.append(f"stream {i}: {error!r}")
        finally:
            events.close()

    def gaps(self, begin: float, end: float) -> list[float]:
        """Seconds between the tokens of a stream that arrived in between, of all streams."""
        found: list[float] = []
        for arrived in self.arrived:
            times = np.array(arrived[:])
            inside = np.nonzero((times > begin) & (times <= end))[0]
            found += (
                np.diff(times[max(0, inside[0] - 1) : inside[-1] + 1]).tolist()
                if len(inside)
                else [end - begin]
            )
        return found


def ask(served: Served, tokens: list[int], count: int) -> tuple[float, float]:
    """One ordinary request: seconds to its first token, and a token after that."""
    body: dict[str, Any] = {
        "model": "model",
        "prompt": tokens,
        "max_tokens": count,
        "ignore_eos": True,
        "temperature": 0,
    }
    begin = time.perf_counter()
    arrived = [time.perf_counter() for _ in served.stream("/v1/completions", body)]
    return arrived[0] - begin, (arrived[-1] - arrived[0]) / max(1, len(arrived) - 1)


def spread(seconds: list[float]) -> dict[str, float]:
    """Median, 99th percentile and largest, in milliseconds."""
    values = 1000 * np.array(seconds)
    return {
        "p50": float(np.percentile(values, 50)),
        "p99": float(np.percentile(values, 99)),
        "max": float(values.max()),
        "count": len(values),
    }
