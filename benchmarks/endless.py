"""Endless streams over HTTP: what a token costs, and what the server holds, from first to last.

    python -m benchmarks.endless --model DIR --streams 8 --tokens 20000 --sink-tokens 4 \\
        --window-tokens 509 --segment-tokens 2048 --json out.json

``vllm serve`` runs in processes of its own; each stream is one streamed completion, and beside
them a short request comes every ``--short-every`` seconds. With ``--minutes`` instead of
``--tokens`` the streams run until the time is over and are then left by their clients. ``--check``
ends with status 1 if a token became dearer, or a process or the KV cache larger (``make soak``).

What a process holds is compared once the run is *settled*: every stream has rolled over and has
been told more than the front end keeps of it, and every block of the KV pool has been used, since
until then the prefix cache takes some hundred bytes of host memory for each block that it meets
(and no more ever: the pool is what bounds it). Between two rollovers lists fill up, so it is the
most of each *round*, in which every stream rolls once, that is compared, by least squares over all
rounds; the second half of them stands beside, where a plateau shows.
"""

from __future__ import annotations

import argparse
import random
import statistics
import threading
import time
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any

from benchmarks import record
from benchmarks.served import Served, add_arguments, flags, serve, settings

#: Points of a stream's curve, and samples of the server, that the result keeps.
POINTS = 250

#: Rounds from which growth is told.
LEAST_ROUNDS = 3

#: What a process may grow by: bytes a token, and once what an allocator keeps for later, one arena
#: of Python's. What is held is counted object by object in tests/e2e/test_growth.py.
BYTES_PER_TOKEN = 1.0
GRAIN = 1 << 20


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
    parser.add_argument("--check", action="store_true", help="fail if anything grows")
    args = parser.parse_args()
    limits = {"streams": 1, "tokens": 100, "minutes": 0.1, "prompt_tokens": 1, "vocabulary": 1}
    for name, least in limits.items():
        value = getattr(args, name)
        if value is not None and value < least:
            flag = name.replace("_", "-")
            parser.error(f"--{flag}: {value} is not allowed; allowed: {least} or more")
    return args


class Run:
    """What happens, as it happens; every list holds (seconds, tokens so far, ...)."""

    def __init__(self, served: Served, args: argparse.Namespace) -> None:
        self.served, self.args = served, args
        self.begin = time.perf_counter()
        self.over = threading.Event()
        self.arrived = [0] * args.streams
        # (index of the token, seconds) of each stream.
        self.curves: list[list[tuple[int, float]]] = [[] for _ in range(args.streams)]
        self.samples: list[dict[str, Any]] = []
        self.short: list[tuple[float, float]] = []
        self.errors: list[str] = []
        self.pool_tokens = served.kv_pool_tokens()

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
                if before // every != self.arrived[stream] // every:
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
        """Ordinary requests beside the streams."""
        body = {"model": "model", "prompt": "The sea is", "max_tokens": 16, "ignore_eos": True}
        while not self.over.wait(self.args.short_every):
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

    def __call__(self) -> None:
        from tqdm import tqdm

        streams = [
            threading.Thread(target=self.follow, args=(i,)) for i in range(self.args.streams)
        ]
        beside = [threading.Thread(target=self.send_short)] if self.args.short_every else []
        for thread in [*streams, *beside]:
            thread.start()
        total = self.args.streams * self.args.tokens if self.args.tokens else None
        with tqdm(total=total, unit="tok", desc="streaming") as bar:
            while any(thread.is_alive() for thread in streams):
                time.sleep(self.args.sample_every)
                bar.update(sum(self.arrived) - bar.n)
                if any(thread.is_alive() for thread in streams):
                    self.sample()
                if self.args.minutes and self.now() > 60 * self.args.minutes:
                    self.over.set()
        self.over.set()
        for thread in beside:
            thread.join()


def per_token(curve: list[tuple[int, float]]) -> list[tuple[int, float]]:
    """(index, milliseconds a token) between the points of a curve."""
    return [(j, 1000 * (t - s) / (j - i)) for (i, s), (j, t) in pairwise(curve)]


def tenth(values: list[float], number: int) -> float:
    """The median of the ``number``-th tenth, counted from 1."""
    a, b = (number - 1) * len(values) // 10, number * len(values) // 10
    return statistics.median(values[a : max(b, a + 1)])


def cpu_per_token(samples: list[dict[str, Any]], number: int) -> dict[str, float]:
    """CPU milliseconds that each process spent on a token in this tenth of all tokens."""
    tokens = samples[-1]["tokens"]
    begin, end = (
        min(samples, key=lambda s: abs(s["tokens"] - part * tokens / 10))
        for part in (number - 1, number)
    )
    made = max(1, end["tokens"] - begin["tokens"])
    return {
        name: 1000 * (end["cpu_seconds"][name] - begin["cpu_seconds"][name]) / made
        for name in sorted(begin["cpu_seconds"].keys() & end["cpu_seconds"].keys())
    }


def settled(samples: list[dict[str, Any]], least: int, pool: int) -> list[dict[str, Any]]:
    """Samples from when each stream was so long and all ``pool`` tokens of KV had been used."""
    return [s for s in samples if s["shortest"] >= least and s["tokens"] >= pool]


def peaks(samples: list[dict[str, Any]], streams: int) -> list[dict[str, Any]]:
    """Of each whole round its last number of tokens, and the most that each process held."""
    rounds = [list(group) for _, group in groupby(samples, lambda s: s["rollovers"] // streams)]
    names = set.intersection(*(set(s["memory"]) for s in samples)) if samples else set()
    return [
        {
            "tokens": float(group[-1]["tokens"]),
            "memory": {name: max(s["memory"][name] for s in group) for name in sorted(names)},
        }
        for group in rounds[:-1]  # the last one was not over
    ]


def growth(rounds: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """How each process grew over these rounds: first and last, and bytes a token."""
    if len(rounds) < LEAST_ROUNDS:
        return {}
    tokens = [r["tokens"] for r in rounds]
    found = {}
    for name in rounds[0]["memory"]:
        sizes = [r["memory"][name] for r in rounds]
        half = (len(sizes) - 1) // 2
        found[name] = {
            "first": sizes[0],
            "last": sizes[-1],
            "bytes_per_token": slope(tokens, sizes),
            "bytes_per_token_second_half": slope(tokens[half:], sizes[half:]),
        }
    return found


def slope(x: list[float], y: list[float]) -> float:
    return statistics.linear_regression(x, y).slope


def thinned(points: list[Any]) -> list[Any]:
    """At most POINTS of them, the last among them."""
    step = max(1, -(-len(points) // POINTS))
    return points[(len(points) - 1) % step :: step]


def summarise(run: Run) -> dict[str, Any]:
    from vllm_sink.serving.tail import EVERY

    args = run.args
    steps = [[ms for _, ms in per_token(curve)] for curve in run.curves]
    ratios = [tenth(s, 10) / tenth(s, 2) for s in steps if len(s) >= 20]
    steady = settled(run.samples, max(args.segment_tokens, EVERY), run.pool_tokens)
    rounds = peaks(steady, args.streams)
    latency = [seconds for _, seconds in run.short]
    return {
        "benchmark": "endless",
        **settings(args),
        "streams": args.streams,
        "prompt_tokens": args.prompt_tokens,
        "tokens": sum(run.arrived),
        "tokens_of_each": run.arrived,
        "seconds": run.now(),
        "rollovers": run.samples[-1]["rollovers"],
        "ms_per_token_second_tenth": statistics.median(tenth(s, 2) for s in steps),
        "ms_per_token_last_tenth": statistics.median(tenth(s, 10) for s in steps),
        "last_over_second_tenth": statistics.median(ratios) if ratios else None,
        "cpu_ms_per_token_second_tenth": cpu_per_token(run.samples, 2),
        "cpu_ms_per_token_last_tenth": cpu_per_token(run.samples, 10),
        "kv_pool_tokens": run.pool_tokens,
        "settled_from_token": steady[0]["tokens"] if steady else None,
        "settled_rounds": len(rounds),
        "settled_tokens": int(rounds[-1]["tokens"] - rounds[0]["tokens"]) if rounds else 0,
        "kv_blocks": sorted({s["kv_blocks"] for s in steady or run.samples[-1:]}),
        "memory": growth(rounds),
        "short_requests": len(latency),
        "short_seconds_median": statistics.median(latency) if latency else None,
        "short_seconds_first_half": _median_half(latency, 0),
        "short_seconds_second_half": _median_half(latency, 1),
        "errors": run.errors,
        "samples": thinned(run.samples),
        "curves": [thinned(curve) for curve in run.curves],
    }


def _median_half(values: list[float], half: int) -> float | None:
    middle = len(values) // 2
    part = values[middle:] if half else values[:middle]
    return statistics.median(part) if part else None


def complaints(result: dict[str, Any]) -> list[str]:
    """What a soak does not tolerate."""
    found = list(result["errors"])
    ratio = result["last_over_second_tenth"]
    if ratio is not None and ratio > 1.1:
        found.append(f"a token costs {ratio:.2f} times what it did")
    if not result["memory"]:
        found.append(
            "too short to tell what grows: every stream must fill a segment and what the front end "
            f"keeps of it, all must use {result['kv_pool_tokens']:,} tokens of KV together, and "
            f"each must roll {LEAST_ROUNDS} times more"
        )
    allowed = BYTES_PER_TOKEN + GRAIN / max(1, result["settled_tokens"])
    for name, process in result["memory"].items():
        if process["bytes_per_token"] > allowed:
            found.append(
                f"{name} grew by {process['bytes_per_token']:.2f} bytes a token, from "
                f"{process['first'] / 2**20:.1f} to {process['last'] / 2**20:.1f} MiB; allowed: "
                f"{allowed:.2f}"
            )
    blocks = result["kv_blocks"]
    # A window begins anywhere in its first block; short requests come and go.
    slack = 2 * result["streams"] + 4
    if blocks[-1] - blocks[0] > slack:
        found.append(f"KV blocks between {blocks[0]} and {blocks[-1]}")
    return found


def draw(result: dict[str, Any], path: Path) -> None:
    """Time a token, resident memory, KV blocks and rollovers, from first to last."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, 2, figsize=(11, 7))
    for curve in result["curves"]:
        points = per_token(curve)
        axes[0, 0].plot([i for i, _ in points], [ms for _, ms in points], linewidth=0.6)
    axes[0, 0].set(xlabel="token of the stream", ylabel="ms a token", ylim=(0, None))
    samples = result["samples"]
    tokens = [s["tokens"] for s in samples]
    for name in samples[-1]["memory"]:
        sizes = [s["memory"].get(name, float("nan")) / 2**20 for s in samples]
        axes[0, 1].plot(tokens, sizes, label=name, linewidth=1)
    axes[0, 1].set(xlabel="tokens, all streams", ylabel="resident MiB", ylim=(0, None))
    axes[0, 1].legend(fontsize=7)
    axes[1, 0].plot(tokens, [s["kv_blocks"] for s in samples], linewidth=1)
    axes[1, 0].set(xlabel="tokens, all streams", ylabel="KV blocks in use", ylim=(0, None))
    axes[1, 1].plot(tokens, [s["rollovers"] for s in samples], linewidth=1)
    axes[1, 1].set(xlabel="tokens, all streams", ylabel="rollovers")
    streams = "1 stream" if result["streams"] == 1 else f"{result['streams']} streams"
    figure.suptitle(
        f"{streams}, S {result['sink_tokens']}, W {result['window_tokens']}, "
        f"segments of {result['segment_tokens']}: {result['tokens']:,} tokens"
    )
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def main() -> None:
    args = parse_args()
    with serve(
        args.model,
        args.json.with_suffix(".log"),
        flags(args, "--max-num-seqs", str(args.streams + 8)),
    ) as served:
        run = Run(served, args)
        run()
    if not run.samples:
        raise SystemExit("\n".join(run.errors) or "it was over before it began")
    result = summarise(run)
    record.write(args.json, result)
    draw(result, args.json.with_suffix(".png"))
    grown = ", ".join(
        f"{n} {m['bytes_per_token']:+.2f} ({m['bytes_per_token_second_half']:+.2f} in the second "
        "half)"
        for n, m in result["memory"].items()
    )
    ratio = result["last_over_second_tenth"]
    print(
        f"{result['tokens']:,} tokens, {result['rollovers']} rollovers, "
        f"{result['ms_per_token_last_tenth']:.1f} ms a token in the last tenth"
        f"{'' if ratio is None else f' ({ratio:.3f} of the second)'}; bytes a token over "
        f"{result['settled_rounds']} settled rounds: {grown or 'too short to tell'}; "
        f"KV blocks {result['kv_blocks'][0]} to {result['kv_blocks'][-1]} -> {args.json}"
    )
    found = complaints(result) if args.check else result["errors"]
    if found:
        raise SystemExit("\n".join(found))


if __name__ == "__main__":
    main()
