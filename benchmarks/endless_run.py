"""Clients of ``benchmarks.endless``: what they receive, and what their server holds meanwhile."""

from __future__ import annotations

import argparse
import random
import threading
import time
from typing import Any

from benchmarks.served import Served
from benchmarks.turns import Side

#: Points of a stream's curve, and samples of the server, that the result keeps.
POINTS = 250


class Run:
    """Clients of one server, and what happens, as it happens.

    Inside ``with`` they are there; every list holds (seconds, tokens so far, ...).
    """

    def __init__(self, served: Served, args: argparse.Namespace) -> None:
        self.served, self.args = served, args
        self.begin = time.perf_counter()
        self.over = threading.Event()
        self.watched = threading.Event()
        self.arrived = [0] * args.streams
        # (index of the token, seconds) of each stream.
        self.curves: list[list[tuple[int, float]]] = [[] for _ in range(args.streams)]
        self.samples: list[dict[str, Any]] = []
        self.short: list[tuple[float, float]] = []
        self.errors: list[str] = []
        self.pool_tokens = served.kv_pool_tokens()
        self.seconds = 0.0
        self.told: list[int] = []
        self.streams = [
            threading.Thread(target=self.follow, args=(i,)) for i in range(args.streams)
        ]
        self.beside = [threading.Thread(target=self.send_short)] if args.short_every else []

    def __enter__(self) -> Run:
        for thread in [*self.streams, *self.beside]:
            thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.over.set()
        for thread in [*self.streams, *self.beside]:
            thread.join()

    def now(self) -> float:
        return time.perf_counter() - self.begin

    def _prompt(self, stream: int) -> str | list[int]:
        if self.args.prompt_tokens is None:
            return str(self.args.prompt)
        vocabulary = range(self.args.vocabulary)
        return random.Random(stream).choices(vocabulary, k=self.args.prompt_tokens)

    def follow(self, stream: int) -> None:
        """One client."""
        every = max(1, self.args.tokens // (2 * POINTS)) if self.args.tokens else 20
        body: dict[str, Any] = {
            "model": "model",
            "prompt": self._prompt(stream),
            "max_tokens": self.args.tokens or 10**9,
            "seed": stream,
            "ignore_eos": True,
            "return_token_ids": True,
        }
        events = self.served.stream("/v1/completions", body)
        try:
            for event in events:
                count = sum(len(c.get("token_ids") or []) for c in event["choices"])
                before, self.arrived[stream] = self.arrived[stream], self.arrived[stream] + count
                new = before // every != self.arrived[stream] // every
                if new and not self.watched.is_set():
                    self.curves[stream].append((self.arrived[stream], round(self.now(), 4)))
                if self.over.is_set():
                    break
            else:
                if not self.args.tokens:
                    self.errors.append(f"stream {stream} ended by itself")
        except Exception as error:
            self.errors.append(f"stream {stream}: {error!r}")
        finally:
            events.close()

    def send_short(self) -> None:
        """Ordinary requests beside the streams, as long as they are watched."""
        body = {"model": "model", "prompt": "The sea is", "max_tokens": 16, "ignore_eos": True}
        while not self.watched.wait(self.args.short_every):
            begin = self.now()
            try:
                self.served.post("/v1/completions", body)
                self.short.append((begin, self.now() - begin))
            except Exception as error:
                self.errors.append(f"short request: {error!r}")

    def sample(self) -> None:
        self.samples.append(
            {
                "seconds": round(self.now(), 3),
                "tokens": sum(self.arrived),
                "shortest": min(self.arrived),
                "rollovers": self.served.rollovers(),
                "kv_blocks": self.served.kv_blocks(),
                "memory": self.served.memory(),
                "cpu_seconds": self.served.cpu_seconds(),
            }
        )

    def watch(self) -> None:
        """Sample until the streams have ended, or the time is over."""
        from tqdm import tqdm

        total = self.args.streams * self.args.tokens if self.args.tokens else None
        last = 60 * self.args.minutes if self.args.minutes else float("inf")
        with tqdm(total=total, unit="tok", desc="streaming") as bar:
            while self.now() < last and any(thread.is_alive() for thread in self.streams):
                time.sleep(self.args.sample_every)
                bar.update(sum(self.arrived) - bar.n)
                if any(thread.is_alive() for thread in self.streams):
                    self.sample()
        self.seconds = self.now()
        self.told = list(self.arrived)
        self.leave_alone()

    def warm(self, tokens: int) -> None:
        """Wait until every stream has received this many tokens."""
        while min(self.arrived) < tokens and not self.errors:
            time.sleep(0.5)
        self.leave_alone()

    def leave_alone(self) -> None:
        """Stop short requests and records; the streams continue."""
        self.watched.set()
        for thread in self.beside:
            thread.join()

    def side(self) -> Side:
        """As it takes turns."""
        return Side(self.served, lambda: sum(self.arrived))
