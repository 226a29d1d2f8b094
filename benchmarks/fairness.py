"""What endless streams cost the short requests beside them, and queued prompts the streams.

    python -m benchmarks.fairness --model DIR --sink-tokens 4 --window-tokens 509 \\
        --segment-tokens 1024 --json out.json

Two servers take turns, so that a busy machine disturbs both: ``rolled``, with segments of
``--segment-tokens``, whose streams roll all the time, and the control ``ordinary``, in whose
segments of ``--ordinary-tokens`` the same streams never roll. Both have the same window. In each:

- short requests, one after the other, beside 0, 1, 4, 8 streams: time to the first token and per
  token thereafter;
- streams, while ``--prompts`` prompts of ``--prompt-tokens`` tokens are queued: the gaps between
  their tokens, before and during.
"""

from __future__ import annotations

import argparse
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import record
from benchmarks.clients import Live, ask, spread
from benchmarks.served import Served, add_arguments, flags, serve, settings

Sides = dict[str, Served]


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="benchmarks.fairness",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_arguments(
        parser, segment_tokens=1024, serve_args="--enforce-eager --max-num-batched-tokens 512"
    )
    parser.add_argument("--streams", default="0,1,4,8", help="how many beside, one by one")
    parser.add_argument("--requests", type=int, default=30, help="short ones, each round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--short-prompt", type=int, default=32, help="tokens")
    parser.add_argument("--short-output", type=int, default=16, help="tokens")
    parser.add_argument("--live", type=int, default=4, help="streams beside the queue of prompts")
    parser.add_argument("--prompts", type=int, default=6, help="queued prompts")
    parser.add_argument("--prompt-tokens", type=int, default=10_000)
    parser.add_argument("--vocabulary", type=int, default=256, help="token ids to draw from")
    parser.add_argument("--ordinary-tokens", type=int, default=65_536)
    return parser.parse_args()


def stream_prompt(args: argparse.Namespace) -> int:
    """Tokens of a stream's prompt."""
    return int(args.segment_tokens + args.window_tokens)


def beside(served: Served, streams: int, args: argparse.Namespace, seed: int) -> list[Any]:
    """(first token, a token after) of short requests beside so many streams.

    A stream's prompt is longer than a small segment: from its first token on its cost is constant,
    and with small segments it has rolled.
    """
    draw = np.random.default_rng(seed)
    with Live(served, streams, stream_prompt(args), args.vocabulary):
        return [
            ask(
                served,
                draw.integers(10, args.vocabulary, args.short_prompt).tolist(),
                args.short_output,
            )
            for _ in range(args.requests)
        ]


def short_requests(sides: Sides, args: argparse.Namespace, bar: Any) -> list[dict[str, Any]]:
    found = []
    for streams in map(int, args.streams.split(",")):
        told: dict[str, list[Any]] = {side: [] for side in sides}
        rolled = {side: served.rollovers() for side, served in sides.items()}
        for seed in range(args.rounds):
            for side, served in sides.items():
                told[side] += beside(served, streams, args, seed)
                bar.update()
        for side, served in sides.items():
            found.append(
                {
                    "side": side,
                    "streams": streams,
                    "rollovers": served.rollovers() - rolled[side],
                    "first_token_ms": spread([first for first, _ in told[side]]),
                    "later_token_ms": spread([later for _, later in told[side]]),
                }
            )
    return found


def in_line(served: Served, args: argparse.Namespace, seed: int) -> dict[str, Any]:
    """Gaps between the tokens of streams: alone, and while prompts are prefilled."""
    draw = np.random.default_rng(seed)
    prompts = draw.integers(10, args.vocabulary, (args.prompts, args.prompt_tokens)).tolist()
    taken: list[float] = []

    def take(prompt: list[int]) -> None:
        taken.append(ask(served, prompt, 1)[0])

    with Live(served, args.live, stream_prompt(args), args.vocabulary) as live:
        clients = [threading.Thread(target=take, args=(prompt,)) for prompt in prompts]
        begin = time.perf_counter()
        time.sleep(8)
        middle = time.perf_counter()
        for client in clients:
            client.start()
        for client in clients:
            client.join()
        end = time.perf_counter()
    return {
        "alone": live.gaps(begin, middle),
        "during": live.gaps(middle, end),
        "first_token_seconds": taken,
        "seconds": end - middle,
    }


def queued(sides: Sides, args: argparse.Namespace, bar: Any) -> list[dict[str, Any]]:
    told: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
    for seed in range(args.rounds):
        for side, served in sides.items():
            told[side].append(in_line(served, args, 100 + seed))
            bar.update()
    return [
        {
            "side": side,
            "gap_alone_ms": spread([g for one in rounds for g in one["alone"]]),
            "gap_during_ms": spread([g for one in rounds for g in one["during"]]),
            "seconds_a_round": [one["seconds"] for one in rounds],
            "prompt_first_token_seconds": [one["first_token_seconds"] for one in rounds],
        }
        for side, rounds in told.items()
    ]


def draw(result: dict[str, Any], path: Path) -> None:
    """Short requests' latency by streams beside them; gaps of streams beside prompts."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 3, figsize=(13, 4))
    colours = {"rolled": "tab:blue", "ordinary": "tab:orange"}
    for axis, key, title in (
        (axes[0], "first_token_ms", "short request: first token"),
        (axes[1], "later_token_ms", "short request: a token after that"),
    ):
        for side, colour in colours.items():
            rows = [r for r in result["short_requests"] if r["side"] == side]
            for part, style in (("p50", "-"), ("p99", ":")):
                axis.plot(
                    [r["streams"] for r in rows],
                    [r[key][part] for r in rows],
                    style,
                    color=colour,
                    marker="o",
                    label=f"{side}, {part}",
                )
        axis.set(xlabel="streams beside", ylabel="ms", title=title, ylim=(0, None))
        axis.legend(fontsize=7)
    rows = result["queue"]
    for i, key in enumerate(("gap_alone_ms", "gap_during_ms")):
        for j, row in enumerate(rows):
            for k, part in enumerate(("p50", "p99", "max")):
                axes[2].bar(
                    3 * i + j + 0.28 * k,
                    row[key][part],
                    0.26,
                    color=colours[row["side"]],
                    alpha=1 - 0.3 * k,
                )
    axes[2].set_xticks([0.8, 3.8], ["alone", "prompts in line"])
    axes[2].set(ylabel="ms", title="gap between a stream's tokens: p50, p99, max")
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def main() -> None:
    from tqdm import tqdm

    args = parse_args()
    segments = {"rolled": args.segment_tokens, "ordinary": args.ordinary_tokens}
    most = max(args.live + args.prompts, *map(int, args.streams.split(",")))
    with ExitStack() as stack:
        sides: Sides = {}
        for side, segment in segments.items():
            log = args.json.with_suffix(f".{side}.log")
            told = flags(args, "--max-num-seqs", str(most + 4), segment_tokens=segment)
            sides[side] = stack.enter_context(serve(args.model, log, told))
        for served in sides.values():
            beside(served, 2, args, 1000)  # warm-up
        turns = 2 * args.rounds * (1 + len(args.streams.split(",")))
        with tqdm(total=turns, desc="turns") as bar:
            short, queue = short_requests(sides, args, bar), queued(sides, args, bar)
    result = {
        "benchmark": "fairness",
        **settings(args),
        "segments": segments,
        "short_requests": short,
        "queue": queue,
    }
    record.write(args.json, result)
    draw(result, args.json.with_suffix(".png"))
    for row in short:
        print(
            f"{row['streams']} streams, {row['side']} ({row['rollovers']} rollovers): first token "
            f"{row['first_token_ms']['p50']:.1f} ms (p99 {row['first_token_ms']['p99']:.1f}), then "
            f"{row['later_token_ms']['p50']:.1f} ms (p99 {row['later_token_ms']['p99']:.1f})"
        )
    for row in queue:
        alone, during = row["gap_alone_ms"], row["gap_during_ms"]
        print(
            f"gaps of {args.live} streams, {row['side']}: {alone['p50']:.1f} ms alone (p99 "
            f"{alone['p99']:.1f}, max {alone['max']:.1f}), {during['p50']:.1f} with prompts in "
            f"line (p99 {during['p99']:.1f}, max {during['max']:.1f})"
        )


if __name__ == "__main__":
    main()
