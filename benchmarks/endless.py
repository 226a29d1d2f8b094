"""Endless streams over HTTP: what a token costs, and what the server holds, from first to last.

    python -m benchmarks.endless --model DIR --streams 8 --tokens 20000 --sink-tokens 4 \\
        --window-tokens 509 --segment-tokens 2048 --json out.json

``vllm serve`` runs in processes of its own; each stream is one streamed completion, and beside
them a short request comes every ``--short-every`` seconds. With ``--minutes`` instead of
``--tokens`` the streams run until the time is over and are then left by their clients. ``--check``
ends with status 1 if a token became dearer, or a process or the KV cache larger (``make soak``).

A shared machine may become half as fast within the hour, and then the clock says nothing of the
server. With ``--pairs`` a fresh server is started at the end, under the same streams, and both take
turns; what a token costs is then told by the ratio of the two (``benchmarks.turns``).
"""

from __future__ import annotations

import argparse
import random
import threading
import time
from contextlib import AbstractContextManager
from typing import Any

from benchmarks import record
from benchmarks.endless_report import POINTS, complaints, draw, said, summarise
from benchmarks.served import Served, add_arguments, flags, serve
from benchmarks.turns import Side, take_turns


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="benchmarks.endless",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_arguments(parser, segment_tokens=2048)
    parser.add_argument("--streams", type=int, default=8)
    until = parser.add_mutually_exclusive_group(required=True)
    until.add_argument("--tokens", type=int, help="generated tokens of each stream")
    until.add_argument("--minutes", type=float, help="how long, instead of how many tokens")
    parser.add_argument("--prompt", default="Once upon a time", help="of each stream")
    parser.add_argument(
        "--prompt-tokens", type=int, help="instead of --prompt: so many, drawn at random"
    )
    parser.add_argument("--vocabulary", type=int, default=256, help="token ids to draw from")
    parser.add_argument("--short-every", type=float, default=2.0, help="seconds; 0 for none")
    parser.add_argument("--sample-every", type=float, default=2.0, help="seconds")
    parser.add_argument(
        "--pairs", type=int, default=0, help="turns beside a fresh server at the end (--minutes)"
    )
    parser.add_argument("--turn-seconds", type=float, default=20.0, help="of each turn")
    parser.add_argument("--check", action="store_true", help="fail if anything grows")
    args = parser.parse_args()
    limits = {"streams": 1, "tokens": 100, "minutes": 0.1, "prompt_tokens": 1, "vocabulary": 1}
    for name, least in limits.items():
        value = getattr(args, name)
        if value is not None and value < least:
            flag = name.replace("_", "-")
            parser.error(f"--{flag}: {value} is not allowed; allowed: {least} or more")
    if args.pairs and (args.pairs < 2 or not args.minutes):
        parser.error(f"--pairs: {args.pairs} is not allowed; allowed: 2 or more, with --minutes")
    if not 1 <= args.turn_seconds <= 60:
        parser.error(
            f"--turn-seconds: {args.turn_seconds} is not allowed; allowed: 1 to 60: an engine that "
            "sleeps for minutes wakes up past vLLM's deadlines"
        )
    return args


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
        """Wait until every stream has been told so many tokens, and leave it at that."""
        while min(self.arrived) < tokens and not self.errors:
            time.sleep(0.5)
        self.leave_alone()

    def leave_alone(self) -> None:
        """No short requests and no records any more: the streams go on by themselves."""
        self.watched.set()
        for thread in self.beside:
            thread.join()

    def side(self) -> Side:
        """As it takes turns."""
        return Side(self.served, lambda: sum(self.arrived))


def started(args: argparse.Namespace, name: str = "") -> AbstractContextManager[Served]:
    """A server for the streams; ``name`` tells its log from the first one's."""
    log = args.json.with_suffix(f".{name}.log" if name else ".log")
    return serve(args.model, log, flags(args, "--max-num-seqs", str(args.streams + 8)))


def beside_fresh(run: Run) -> dict[str, Any] | None:
    """What a token costs the server of ``run`` and a fresh one, in turns; None if not asked for."""
    args = run.args
    if not args.pairs or run.errors:
        return None
    with started(args, "fresh") as served, Run(served, args) as fresh:
        # Its windows full, and each stream rolled once.
        fresh.warm(max(args.sink_tokens + args.window_tokens, args.segment_tokens))
        told = take_turns(run.side(), fresh.side(), args.pairs, args.turn_seconds)
        if fresh.errors:
            raise SystemExit("\n".join(fresh.errors))
        return told


def main() -> None:
    args = parse_args()
    with started(args) as served, Run(served, args) as run:
        run.watch()
        beside = beside_fresh(run)
    if not run.samples:
        raise SystemExit("\n".join(run.errors) or "it was over before it began")
    result = summarise(run) | {"beside_fresh": beside}
    record.write(args.json, result)
    draw(result, args.json.with_suffix(".png"))
    print(f"{said(result)} -> {args.json}")
    found = complaints(result) if args.check else result["errors"]
    if found:
        raise SystemExit("\n".join(found))


if __name__ == "__main__":
    main()
