"""Endless streams over HTTP: what a token costs, and what the server holds, from start to end.

    python -m benchmarks.endless --model DIR --streams 8 --tokens 20000 --sink-tokens 4 \\
        --window-tokens 509 --segment-tokens 2048 --json out.json

``vllm serve`` runs in processes of its own; each stream is one streamed completion, and beside
them a short request is sent every ``--short-every`` seconds. With ``--minutes`` instead of
``--tokens`` the streams run until the time is over; then their clients disconnect. ``--check``
ends with status 1 if a token's cost, a process or the KV cache has grown (``make soak``).

A shared machine may become half as fast within the hour; the clock then says nothing about the
server. With ``--pairs`` a fresh server is started at the end, under the same streams, and both take
turns; the ratio of the two is then the measure (``benchmarks.turns``).
"""

from __future__ import annotations

import argparse
from contextlib import AbstractContextManager
from typing import Any

from benchmarks import record
from benchmarks.endless_report import complaints, draw, said, summarise
from benchmarks.endless_run import Run
from benchmarks.served import Served, add_arguments, flags, serve
from benchmarks.turns import take_turns


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


def started(args: argparse.Namespace, name: str = "") -> AbstractContextManager[Served]:
    """A server for the streams; ``name`` distinguishes its log from the first one's."""
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
