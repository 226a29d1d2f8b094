"""The result of an endless run: cost of a token early and late, growth, and its picture.

What a process holds is compared once the run is *settled*: every stream has rolled over and has
received more than the front end keeps of it, and every block of the KV pool has been used, because
until then the prefix cache takes some hundred bytes of host memory for each new block (the pool
bounds that). Lists fill up between two rollovers, so the maximum of each *round*, in which every
stream rolls once, is compared, by least squares over all rounds; the second half of them is
reported as well, where a plateau shows.
"""

from __future__ import annotations

import statistics
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any

from benchmarks.endless_run import POINTS, Run
from benchmarks.served import settings

#: Rounds needed to measure growth.
LEAST_ROUNDS = 3

#: What a token may cost at the end, as a ratio.
DEARER = 1.1

#: What a process may grow by: bytes a token, and once what an allocator keeps for later, one arena
#: of Python's. What is held is counted object by object in tests/e2e/test_growth.py.
BYTES_PER_TOKEN = 1.0
GRAIN = 1 << 20


def per_token(curve: list[tuple[int, float]]) -> list[tuple[int, float]]:
    """(index, milliseconds a token) between the points of a curve."""
    return [(j, 1000 * (t - s) / (j - i)) for (i, s), (j, t) in pairwise(curve)]


def tenth(values: list[float], number: int) -> float:
    """The median of the ``number``-th tenth, counted from 1."""
    a, b = (number - 1) * len(values) // 10, number * len(values) // 10
    return statistics.median(values[a : max(b, a + 1)])


def cpu_per_token(samples: list[dict[str, Any]], number: int) -> dict[str, float]:
    """CPU milliseconds per token of each process in this tenth of all tokens."""
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
    """Samples from when each stream was this long and all ``pool`` tokens of KV had been used."""
    return [s for s in samples if s["shortest"] >= least and s["tokens"] >= pool]


def peaks(samples: list[dict[str, Any]], streams: int) -> list[dict[str, Any]]:
    """For each whole round its last number of tokens, and the maximum that each process held."""
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
    """How each process grew over these rounds: first and last, and bytes per token."""
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
    from vllm_sink.streaming.output_trimming import EVERY

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
        "tokens": sum(run.told),
        "tokens_of_each": run.told,
        "seconds": run.seconds,
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
    """What makes a soak fail."""
    found = list(result["errors"])
    beside = result["beside_fresh"]
    ratio = beside["ratio"] if beside else result["last_over_second_tenth"]
    if ratio is not None and ratio > DEARER:
        of = "at a fresh server in turns" if beside else "at first"
        found.append(f"a token costs {ratio:.2f} times what it does {of}; allowed: {DEARER}")
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
    """Time per token, resident memory, KV blocks and rollovers, from start to end."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    beside = result["beside_fresh"]
    width = 3 if beside else 2
    figure, axes = pyplot.subplots(2, width, figsize=(5.5 * width, 7))
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
    if beside:
        _draw_turns(beside, axes[0, 2], axes[1, 2])
    streams = "1 stream" if result["streams"] == 1 else f"{result['streams']} streams"
    figure.suptitle(
        f"{streams}, S {result['sink_tokens']}, W {result['window_tokens']}, "
        f"segments of {result['segment_tokens']}: {result['tokens']:,} tokens"
    )
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def _draw_turns(beside: dict[str, Any], turns: Any, cpu: Any) -> None:
    """Time per token of both servers, turn by turn, and the CPU time of their processes."""
    times = {
        name: [1000 * pair[name]["seconds"] / pair[name]["tokens"] for pair in beside["turns"]]
        for name in ("aged", "fresh")
    }
    at = range(1, len(beside["turns"]) + 1)
    for (name, values), color in zip(times.items(), ("tab:red", "tab:green"), strict=True):
        turns.plot(at, values, marker="o", color=color, label=name)
    turns.set(xlabel="turn", ylabel="ms a token, all streams", xticks=at)
    turns.set_ylim(0, 1.2 * max(map(max, times.values())))
    turns.set_title(f"aged / fresh server: {beside['ratio']:.3f}", fontsize=10)
    turns.legend(fontsize=7)
    names = sorted(beside["cpu_ratio"])
    cpu.barh(names, [beside["cpu_ratio"][name] for name in names], color="tab:grey")
    cpu.axvline(1.0, color="black", linewidth=0.8)
    cpu.set(xlabel="CPU time a token, aged / fresh")
    cpu.tick_params(axis="y", labelsize=7)


def said(result: dict[str, Any]) -> str:
    """The result in one line."""
    ratio, beside = result["last_over_second_tenth"], result["beside_fresh"]
    grown = ", ".join(
        f"{n} {m['bytes_per_token']:+.2f} ({m['bytes_per_token_second_half']:+.2f} in the second "
        "half)"
        for n, m in result["memory"].items()
    )
    cost = "" if ratio is None else f" ({ratio:.3f} of the second)"
    if beside:
        first, third = beside["ratio_quartiles"]
        cost += f", {beside['ratio']:.3f} of a fresh server's ({first:.3f} to {third:.3f})"
    return (
        f"{result['tokens']:,} tokens, {result['rollovers']} rollovers, "
        f"{result['ms_per_token_last_tenth']:.1f} ms a token in the last tenth{cost}; bytes a "
        f"token over {result['settled_rounds']} settled rounds: {grown or 'too short to tell'}; "
        f"KV blocks {result['kv_blocks'][0]} to {result['kv_blocks'][-1]}"
    )
