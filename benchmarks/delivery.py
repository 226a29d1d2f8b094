"""Does a late token of a stream reach the client as fast as an early one, front end included?

    python -m benchmarks.delivery --model DIR --marks 5000,50000,500000 --sink-tokens 4 \\
        --window-tokens 509 --segment-tokens 2048 --json out.json

One streamed completion and one streamed chat, one after the other (``--together``: concurrently, in
half the time, but their CPU time is not separated), until ``--span`` tokens past the last mark.
Around each mark: the gaps between tokens as the client sees them, and the CPU time per token of the
API server and the engine, which a busy machine does not disturb.
"""

from __future__ import annotations

import argparse
import threading
import time
from array import array
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import record
from benchmarks.clients import spread
from benchmarks.served import Served, add_arguments, flags, serve, settings

ENDPOINTS = {
    "completions": ("/v1/completions", {"prompt": "Once upon a time"}),
    "chat": (
        "/v1/chat/completions",
        {"messages": [{"role": "user", "content": "Tell me a story."}]},
    ),
}


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="benchmarks.delivery",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_arguments(parser, segment_tokens=2048)
    parser.add_argument("--marks", default="5000,50000,500000", help="tokens of the answer")
    parser.add_argument("--span", type=int, default=2500, help="tokens before and after a mark")
    parser.add_argument("--endpoints", default=",".join(ENDPOINTS))
    parser.add_argument("--together", action="store_true", help="all endpoints concurrently")
    args = parser.parse_args()
    args.marks = sorted(map(int, args.marks.split(",")))
    args.endpoints = args.endpoints.split(",")
    if args.marks[0] < args.span or not set(args.endpoints) <= set(ENDPOINTS):
        parser.error(f"--marks from --span up; --endpoints of {', '.join(ENDPOINTS)}")
    return args


class Stream:
    """One client, from its first token to the last requested.

    Attributes:
        arrived: seconds of each token.
        characters: of the answer until then.
    """

    def __init__(self, served: Served, endpoint: str, tokens: int) -> None:
        self.arrived = array("d")
        self.characters = 0
        self.error: Exception | None = None
        path, body = ENDPOINTS[endpoint]
        more = {"model": "model", "max_tokens": 1 << 40, "ignore_eos": True, "seed": 0}
        self._events = served.stream(path, {**body, **more, "return_token_ids": True})
        self._tokens = tokens
        self.thread = threading.Thread(target=self._follow)
        self.thread.start()

    def _follow(self) -> None:
        try:
            for event in self._events:
                now = time.perf_counter()
                for choice in event["choices"]:
                    text = choice.get("text") or choice.get("delta", {}).get("content") or ""
                    self.characters += len(text)
                    self.arrived.extend([now] * len(choice.get("token_ids") or []))
                if len(self.arrived) >= self._tokens:
                    return
            self.error = RuntimeError(f"the stream ended after {len(self.arrived)} tokens")
        except Exception as error:
            self.error = error
        finally:
            self._events.close()


def follow(served: Served, endpoints: list[str], args: argparse.Namespace) -> dict[str, Any]:
    """Concurrent streams of these endpoints, and what the server spends on them."""
    from tqdm import tqdm

    tokens = args.marks[-1] + args.span
    streams = {name: Stream(served, name, tokens) for name in endpoints}
    samples: list[tuple[int, dict[str, float]]] = []
    with tqdm(total=tokens, unit="tok", desc=" + ".join(endpoints)) as bar:
        while any(s.thread.is_alive() for s in streams.values()):
            time.sleep(1)
            count = min(len(s.arrived) for s in streams.values())
            samples.append((count, served.cpu_seconds()))
            bar.update(count - bar.n)
    for stream in streams.values():
        if stream.error is not None:
            raise stream.error
    return {
        "endpoints": endpoints,
        "characters": {name: s.characters for name, s in streams.items()},
        "marks": [
            {
                "token": mark,
                "gap_ms": {name: _gap(s.arrived, mark, args.span) for name, s in streams.items()},
                "cpu_ms_per_token": _cpu(samples, mark, args.span),
            }
            for mark in args.marks
        ],
        "curves": {name: _curve(s.arrived) for name, s in streams.items()},
    }


def _gap(arrived: array[float], mark: int, span: int) -> dict[str, float]:
    around = np.array(arrived[mark - span : mark + span])
    mean = 1000 * (around[-1] - around[0]) / (len(around) - 1)
    return {"mean": float(mean), **spread(np.diff(around).tolist())}


def _cpu(samples: list[tuple[int, dict[str, float]]], mark: int, span: int) -> dict[str, float]:
    """CPU time of a token of each stream, by process, interpolated between samples."""
    counts = [count for count, _ in samples]
    found = {}
    for name in samples[0][1]:
        used = [cpu.get(name, 0.0) for _, cpu in samples]
        first, last = np.interp([mark - span, mark + span], counts, used)
        found[name] = float(1000 * (last - first) / (2 * span))
    return found


def _curve(arrived: array[float]) -> list[tuple[int, float]]:
    """(token, milliseconds per token) in 200 pieces."""
    edges = np.linspace(0, len(arrived) - 1, 201).astype(int)
    times = np.array(arrived)[edges]
    cost = 1000 * np.diff(times) / np.maximum(1, np.diff(edges))
    return [(int(i), float(ms)) for i, ms in zip(edges[1:], cost, strict=True)]


def draw(result: dict[str, Any], path: Path) -> None:
    """Milliseconds per token at the client, and CPU time per token at the marks."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (clock, cpu) = pyplot.subplots(1, 2, figsize=(11, 4))
    for run in result["runs"]:
        for name, curve in run["curves"].items():
            clock.plot([i for i, _ in curve], [ms for _, ms in curve], label=name, linewidth=1)
        together = " and ".join(run["endpoints"])
        for process in run["marks"][0]["cpu_ms_per_token"]:
            points = [(m["token"], m["cpu_ms_per_token"][process]) for m in run["marks"]]
            cpu.plot(*zip(*points, strict=True), marker="o", label=f"{process}, {together}")
    clock.set(xlabel="token of the answer", ylabel="ms a token, at the client", ylim=(0, None))
    cpu.set(xlabel="token of the answer", ylabel="CPU ms a token", ylim=(0, None), xscale="log")
    clock.legend()
    cpu.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def main() -> None:
    args = parse_args()
    groups = [args.endpoints] if args.together else [[name] for name in args.endpoints]
    with serve(args.model, args.json.with_suffix(".log"), flags(args)) as served:
        runs = [follow(served, group, args) for group in groups]
        rollovers = served.rollovers()
    result = {
        "benchmark": "delivery",
        **settings(args),
        "span": args.span,
        "rollovers": rollovers,
        "runs": runs,
    }
    record.write(args.json, result)
    draw(result, args.json.with_suffix(".png"))
    for run in runs:
        for mark in run["marks"]:
            gaps = ", ".join(
                f"{name} {gap['mean']:.2f} ms a token (p50 {gap['p50']:.2f}, p99 {gap['p99']:.2f})"
                for name, gap in mark["gap_ms"].items()
            )
            cpu = ", ".join(f"{n} {ms:.2f}" for n, ms in mark["cpu_ms_per_token"].items())
            print(f"token {mark['token']:,}: {gaps}; CPU ms: {cpu}")


if __name__ == "__main__":
    main()
