"""Two servers in turns, one stopped while the other works: the machine's own speed cancels.

The effect of an hour on a server is the ratio to a fresh one under the same load, pair by pair, not
a comparison of the hour's two ends, between which a shared machine may become half as fast.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.served import Served

#: Seconds between resuming and measuring.
SETTLE = 2.0


@dataclass(frozen=True)
class Side:
    """One of the two.

    served: the server, under load. tokens: how many its clients have received so far.
    """

    served: Served
    tokens: Callable[[], int]


@dataclass(frozen=True)
class Turn:
    """What one side did while the other was stopped; ``cpu_seconds`` by process."""

    tokens: int
    seconds: float
    cpu_seconds: dict[str, float]


def one_turn(side: Side, seconds: float) -> Turn:
    """Resumes a side, measures it for ``seconds`` and stops it again.

    Raises:
        RuntimeError: its clients received nothing.
    """
    side.served.wake()
    time.sleep(SETTLE)
    begin, told, cpu = time.perf_counter(), side.tokens(), side.served.cpu_seconds()
    time.sleep(seconds)
    elapsed, made = time.perf_counter() - begin, side.tokens() - told
    used = side.served.cpu_seconds()
    side.served.sleep()
    if not made:
        raise RuntimeError(f"no token arrived in {elapsed:.0f} seconds")
    return Turn(made, elapsed, {name: used[name] - cpu[name] for name in used.keys() & cpu.keys()})


def take_turns(aged: Side, fresh: Side, pairs: int, seconds: float) -> dict[str, Any]:
    """Both in turn, ``pairs`` times ``seconds`` each; the first side alternates.

    Returns:
        ratio: what a token took the aged side over what it took the fresh one, the median of the
        pairs' own ratios; ratio_quartiles, ms_per_token and turns beside it. cpu_ratio: the same of
        each process's CPU time, of all turns together.
    """
    from tqdm import tqdm

    sides = {"aged": aged, "fresh": fresh}
    turns: list[dict[str, Turn]] = []
    for side in sides.values():
        side.served.sleep()
    try:
        for number in tqdm(range(pairs), unit="pair", desc="aged and fresh in turns"):
            order = list(sides) if number % 2 == 0 else list(reversed(sides))
            turns.append({name: one_turn(sides[name], seconds) for name in order})
    finally:
        for side in sides.values():
            side.served.wake()
    return summary(turns)


def summary(turns: list[dict[str, Turn]]) -> dict[str, Any]:
    """The result of the turns; see ``take_turns``."""
    times = {
        name: [1000 * pair[name].seconds / pair[name].tokens for pair in turns]
        for name in ("aged", "fresh")
    }
    ratios = [a / b for a, b in zip(times["aged"], times["fresh"], strict=True)]
    first, median, third = statistics.quantiles(ratios, n=4, method="inclusive")
    processes = set.intersection(*(set(t.cpu_seconds) for pair in turns for t in pair.values()))
    cpu = {
        name: {process: _cpu_per_token(turns, name, process) for process in sorted(processes)}
        for name in times
    }
    return {
        "ratio": median,
        "ratio_quartiles": [first, third],
        "ms_per_token": {name: statistics.median(values) for name, values in times.items()},
        "cpu_ms_per_token": cpu,
        "cpu_ratio": {
            process: cpu["aged"][process] / cpu["fresh"][process]
            for process in sorted(processes)
            if cpu["fresh"][process]
        },
        "turns": [{name: asdict(turn) for name, turn in pair.items()} for pair in turns],
    }


def _cpu_per_token(turns: list[dict[str, Turn]], name: str, process: str) -> float:
    """Milliseconds, of all turns of a side."""
    used = sum(pair[name].cpu_seconds[process] for pair in turns)
    return 1000 * used / sum(pair[name].tokens for pair in turns)
