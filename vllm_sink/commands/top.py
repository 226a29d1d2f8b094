"""``vllm-sink top URL``: a live view of a server's ``/metrics``."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator

from vllm_sink.commands import server
from vllm_sink.commands.server import Metrics, Server

#: Characters of a bar.
BAR = 32


def add(parser: argparse.ArgumentParser) -> None:
    server.add(parser)
    parser.add_argument(
        "--interval", type=seconds, default=2.0, metavar="SECONDS", help="(default: 2)"
    )
    parser.add_argument("--once", action="store_true", help="print one view and end")


def seconds(text: str) -> float:
    """A positive number of seconds."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(
            f"{text!r} is not allowed; allowed: a positive number of seconds"
        )
    return value


def run(args: argparse.Namespace) -> int:
    """Show views until interrupted."""
    watched = Server.of(args)
    # A rate needs two looks; the clock is read beside each.
    before, then = watched.metrics(), time.monotonic()
    while True:
        time.sleep(args.interval)
        now, at = watched.metrics(), time.monotonic()
        text = "\n".join(view(watched.url, before, now, at - then))
        if args.once:
            print(text)
            return 0
        clear = "\x1b[H\x1b[2J" if sys.stdout.isatty() else ""
        print(f"{clear}{text}\n{time.strftime('%H:%M:%S')}  Ctrl-C ends", flush=True)
        before, then = now, at


def view(url: str, before: Metrics, now: Metrics, elapsed: float) -> Iterator[str]:
    """The lines of one view.

    Args:
        url: of the server.
        before: an earlier look.
        now: the latest look.
        elapsed: seconds between the two.
    """

    def level(name: str, **labels: str) -> float:
        return now.sum(f"vllm_sink_{name}", **labels)

    def rate(name: str) -> float:
        return max(0.0, now.sum(name) - before.sum(name)) / elapsed

    for info, _ in now.of("vllm_sink_info"):
        yield (
            f"{url}  {info['model_name']} engine {info['engine']}  {info['policy']} "
            f"S={info['sink_tokens']} W={info['window_tokens']} of {info['native_context']}  "
            f"attention: {info['attention_provider']}"
        )
    yield (
        f"streams    {level('streams'):.0f} live, {level('streams_past_context'):.0f} past the "
        f"context, {level('streams_that_fit'):.0f} fit; "
        f"{now.sum('vllm_num_requests_waiting'):.0f} waiting"
    )
    kinds = {kind: level("blocks", kind=kind) for kind in ("sink", "window", "free")}
    total = max(1.0, sum(kinds.values()))
    rows = {f"{kind} blocks": value for kind, value in kinds.items()}
    for name, value in (rows | {"promised": level("reserved_blocks")}).items():
        yield f"{name:<14} {bar(value / total)} {value:>8,.0f}"
    yield (
        f"churn      {rate('vllm_sink_blocks_recycled_total'):,.1f} blocks/s, "
        f"{rate('vllm_sink_tokens_evicted_total'):,.1f} tokens/s evicted"
    )
    yield (
        f"tokens     {rate('vllm_generation_tokens_total'):,.1f}/s generated, "
        f"{rate('vllm_prompt_tokens_total'):,.1f}/s prompt"
    )
    engines = sum(1 for _ in now.of("vllm_sink_window_occupancy_ratio")) or 1
    yield f"windows    {level('window_occupancy_ratio') / engines:.0%} full"
    yield (
        f"so far     {level('admissions_total'):,.0f} admitted, "
        f"{level('admissions_refused_total'):,.0f} made to wait, "
        f"{level('preemptions_total'):,.0f} preempted, {level('rollovers_total'):,.0f} rollovers, "
        f"{level('stream_tokens_count'):,.0f} ended"
    )
    tenants = sorted(now.of("vllm_sink_tenant_blocks"), key=lambda one: -one[1])
    for labels, value in tenants[:10]:
        name = labels["tenant"]
        live = level("tenant_streams", tenant=name)
        yield f"  {name:<24} {live:>4.0f} streams {value:>8,.0f} blocks"


def bar(share: float) -> str:
    """A share from 0 to 1 as a bar."""
    full = round(min(1.0, max(0.0, share)) * BAR)
    return "█" * full + "·" * (BAR - full)
