"""What the statistics cost: time per step with them on and off, interleaved in one run.

    python -m benchmarks.metrics_cost --model DIR --streams 64 --json out.json

One engine with vLLM's own statistics always on, many streams decoding past their windows. Short
runs of steps alternate with this project's statistics (counting in the scheduler, messages,
export to prometheus-client) and without; pairs of neighbouring runs are compared, so that a
machine that slows down slows both. What the block manager counts when a block moves stays on.
The time of the hooks, by a clock around them, is reported as well.
"""

from __future__ import annotations

import argparse
import math
import os
import random
import statistics
import time
from pathlib import Path
from typing import Any

from benchmarks import record

# In this process: the scheduler and the loggers are switched from here.
os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "2")


#: Seconds with clocks in the hooks: several messages, of which one a second is sent.
CLOCKED = 6.0


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="benchmarks.metrics_cost",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", required=True, help="a model folder or name")
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--sink-tokens", type=int, default=4)
    parser.add_argument("--window-tokens", type=int, default=60)
    parser.add_argument("--spell", type=int, default=10, help="steps between two switches")
    parser.add_argument("--pairs", type=int, default=200, help="runs with, and without")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--json", required=True, type=Path)
    return parser.parse_args()


def engine(args: argparse.Namespace) -> Any:
    """An engine with all streams decoding past their windows."""
    from vllm import LLM, SamplingParams

    policy = {
        "name": "sink",
        "sink_tokens": args.sink_tokens,
        "window_tokens": args.window_tokens,
    }
    llm = LLM(
        args.model,
        dtype=args.dtype,
        enforce_eager=True,
        disable_log_stats=False,
        max_num_seqs=args.streams,
        additional_config={"kv_policy": policy},
    )
    steps = 2 * args.pairs * args.spell + 2 * args.window_tokens + 2000
    params = SamplingParams(max_tokens=steps, temperature=0.0, ignore_eos=True)
    for i in range(args.streams):
        prompt = {"prompt_token_ids": [100 + i, *range(100, 110)]}
        llm.llm_engine.add_request(f"stream-{i}", prompt, params)
    for _ in range(args.window_tokens + 20):
        llm.llm_engine.step()
    return llm.llm_engine


class Clock:
    """Time spent in a function, by replacing it on its object."""

    def __init__(self, owner: Any, name: str) -> None:
        self.seconds = 0.0
        inner = getattr(owner, name)

        def timed(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            try:
                return inner(*args, **kwargs)
            finally:
                self.seconds += time.perf_counter() - start

        setattr(owner, name, timed)


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Seconds of each run of steps."""
    from vllm_sink.metrics.export import SinkStatLogger

    llm = engine(args)
    scheduler = llm.engine_core.engine_core.scheduler
    manager = llm.logger_manager
    (ours,) = [one for one in manager.stat_loggers if isinstance(one, SinkStatLogger)]
    without = [one for one in manager.stat_loggers if one is not ours]
    with_ours = list(manager.stat_loggers)
    collector = scheduler.statistics

    def spell(on: bool) -> float:
        scheduler.statistics = collector if on else None
        manager.stat_loggers = with_ours if on else without
        start = time.perf_counter()
        for _ in range(args.spell):
            llm.step()
        return time.perf_counter() - start

    on: list[float] = []
    off: list[float] = []
    for _ in range(args.pairs):
        first = random.random() < 0.5  # neither always comes first
        for state in (first, not first):
            (on if state else off).append(spell(state))
    # The same with clocks in the hooks, separately: reading a clock costs as much as a hook.
    clocks = [Clock(collector, "message"), Clock(ours, "record")]
    start = time.perf_counter()
    while time.perf_counter() - start < CLOCKED and llm.has_unfinished_requests():
        spell(True)
    return {
        "on": on,
        "off": off,
        "in_hooks": sum(c.seconds for c in clocks) / (time.perf_counter() - start),
    }


def interval(ratios: list[float]) -> tuple[float, float]:
    """95 % of the median, by bootstrap."""
    rng = random.Random(0)
    medians = sorted(statistics.median(rng.choices(ratios, k=len(ratios))) for _ in range(2000))
    return medians[50], medians[-51]


def main() -> None:
    args = parse_args()
    found = measure(args)
    ratios = [a / b for a, b in zip(found["on"], found["off"], strict=True)]
    low, high = interval(ratios)
    result = {
        "benchmark": "metrics_cost",
        "model": Path(args.model).name,
        "streams": args.streams,
        "window_tokens": args.window_tokens,
        "steps_each": args.pairs * args.spell,
        "ms_per_step_off": 1000 * statistics.median(found["off"]) / args.spell,
        "ratio_median": statistics.median(ratios),
        "ratio_median_95": [low, high],
        "ratio_of_sums": math.fsum(found["on"]) / math.fsum(found["off"]),
        "share_in_hooks": found["in_hooks"],
    }
    record.write(args.json, result)
    print(
        f"{args.streams} streams, {result['ms_per_step_off']:.2f} ms a step: on / off "
        f"{result['ratio_median']:.4f} ({low:.4f} to {high:.4f}); in the hooks "
        f"{found['in_hooks']:.5%} -> {args.json}"
    )


if __name__ == "__main__":
    main()
