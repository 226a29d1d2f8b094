"""What plain chat clients get: many short, concurrent chats without a length, against stock vLLM.

    python -m benchmarks.chats --model DIR --json out.json

Two servers with vLLM's defaults, one of them with only ``--kv-policy sink`` added; one works while
the other is stopped. Each gets ``--chats`` concurrent one-line chats without ``max_tokens``, in
``--rounds`` alternating rounds. All chats end: tokens per second, and times to the first token.

Then, with the policy only: a request of four tokens, by itself, beside endless streams, and beside
these and large requests that wait for their blocks.
"""

from __future__ import annotations

import argparse
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import record
from benchmarks.served import Served, serve

LINES = (
    "Hi!", "Tell me a joke.", "What is a tide?", "Name three rivers.", "Why is the sky blue?",
    "Write a line about rain.", "What rhymes with sea?", "Who wrote Emma?",
)  # fmt: skip


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="benchmarks.chats",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", required=True, help="a model folder or name")
    parser.add_argument("--chats", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--serve-args", default="--enforce-eager", help="of both servers")
    parser.add_argument("--small", type=int, default=30, help="requests of four tokens, each time")
    parser.add_argument("--large-tokens", type=int, default=6000, help="of prompts that wait")
    parser.add_argument("--json", required=True, type=Path)
    return parser.parse_args()


def chat(served: Served, i: int, seed: int, told: list[dict[str, float]]) -> None:
    """One chat as a plain client sends it: seconds to its first token, tokens, finish reason."""
    body = {
        "model": "model",
        "messages": [{"role": "user", "content": f"{LINES[i % len(LINES)]} ({i})"}],
        "seed": 1000 * seed + i,
        "stream_options": {"include_usage": True},
    }
    begin, first, usage = time.perf_counter(), 0.0, {}
    for event in served.stream("/v1/chat/completions", body):
        if event["choices"] and not first:
            first = time.perf_counter() - begin
        usage = event.get("usage") or usage
    told.append({"ttft_s": first, "tokens": usage["completion_tokens"]})


def crowd(served: Served, args: argparse.Namespace, seed: int) -> dict[str, Any]:
    """All chats concurrently, until the last one ends."""
    told: list[dict[str, float]] = []
    clients = [
        threading.Thread(target=chat, args=(served, i, seed, told)) for i in range(args.chats)
    ]
    begin = time.perf_counter()
    for client in clients:
        client.start()
    for client in clients:
        client.join()
    seconds = time.perf_counter() - begin
    assert len(told) == args.chats, "a chat failed"
    tokens = sum(one["tokens"] for one in told)
    first = np.array([one["ttft_s"] for one in told])
    return {
        "seconds": seconds,
        "tokens": tokens,
        "longest": max(one["tokens"] for one in told),
        "tokens_per_second": tokens / seconds,
        "ttft_p50_s": float(np.quantile(first, 0.5)),
        "ttft_p95_s": float(np.quantile(first, 0.95)),
    }


class Streams:
    """Endless streams until the end of the block: as many as the server admits."""

    def __init__(self, served: Served) -> None:
        self._served = served
        self._over = threading.Event()
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> int:
        while True:
            began, refused = threading.Event(), threading.Event()
            thread = threading.Thread(target=self._follow, args=(began, refused), daemon=True)
            thread.start()
            while not began.is_set() and not refused.is_set():
                time.sleep(0.02)
            if refused.is_set():
                return len(self._threads)
            self._threads.append(thread)

    def __exit__(self, *error: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _follow(self, began: threading.Event, refused: threading.Event) -> None:
        body = {
            "model": "model",
            "prompt": "The sea is " * 800,
            "ignore_eos": True,
            "vllm_xargs": {"endless": True},
        }
        events = self._served.stream("/v1/completions", body)
        try:
            for _ in events:
                began.set()
                if self._over.is_set():
                    return
        except RuntimeError as error:
            if "429" not in str(error):
                raise
            refused.set()
        finally:
            events.close()


def small(served: Served, count: int) -> list[float]:
    """Seconds of requests of four tokens, one after the other."""
    seconds = []
    for i in range(count):
        body = {"model": "model", "prompt": f"{i} one", "max_tokens": 4, "ignore_eos": True}
        begin = time.perf_counter()
        served.post("/v1/completions", body)
        seconds.append(time.perf_counter() - begin)
    return seconds


def beside(served: Served, args: argparse.Namespace) -> dict[str, Any]:
    """Small requests by themselves, beside streams, and beside streams and waiting requests."""
    draw = np.random.default_rng(0)
    found: dict[str, Any] = {"alone_s": small(served, args.small)}
    with Streams(served) as streams:
        found["streams"] = streams
        rounds: dict[str, list[float]] = {"beside_streams_s": [], "beside_waiting_s": []}
        for _ in range(3):
            rounds["beside_streams_s"] += small(served, args.small)
            stop = threading.Event()

            def wait(prompt: list[int], stop: threading.Event = stop) -> None:
                body = {"model": "model", "prompt": prompt, "max_tokens": 4, "stream": True}
                try:
                    events = served.stream("/v1/completions", body)
                    for _ in events:
                        if stop.is_set():
                            return
                except RuntimeError:
                    pass  # refused: it waited too long

            for _ in range(8):
                prompt = draw.integers(100, 30_000, args.large_tokens).tolist()
                threading.Thread(target=wait, args=(prompt,), daemon=True).start()
            time.sleep(1)
            found["waiting"] = served.metric("vllm:num_requests_waiting")
            rounds["beside_waiting_s"] += small(served, args.small)
            stop.set()
            while served.metric("vllm:num_requests_waiting"):
                time.sleep(1)
    found |= rounds
    medians = {name: float(np.median(found[name])) for name in ("alone_s", *rounds)}
    return found | {
        "medians_s": medians,
        "ratio": medians["beside_waiting_s"] / medians["beside_streams_s"],
    }


def main() -> None:
    args = parse_args()
    from tqdm import tqdm

    common = ["--served-model-name", "model", *args.serve_args.split()]
    log = args.json.parent / "chats"
    sides: dict[str, list[dict[str, Any]]] = {"stock": [], "sink": []}
    with (
        serve(args.model, log.with_suffix(".stock.log"), common) as stock,
        serve(args.model, log.with_suffix(".sink.log"), [*common, "--kv-policy", "sink"]) as sink,
    ):
        servers = {"stock": stock, "sink": sink}
        for served in servers.values():
            small(served, 3)  # the first request may compile
        bar = tqdm(total=2 * args.rounds + 1, desc="rounds")
        for seed in range(args.rounds):
            for name in ("stock", "sink") if seed % 2 == 0 else ("sink", "stock"):
                sides[name].append(crowd(servers[name], args, seed))
                bar.update()
        passing = beside(sink, args)
        bar.update()
        bar.close()
    medians = {
        name: {key: float(np.median([one[key] for one in rounds])) for key in rounds[0]}
        for name, rounds in sides.items()
    }
    result = {
        "benchmark": "chats",
        "model": Path(args.model).name,
        "chats": args.chats,
        "sides": sides,
        "medians": medians,
        "ratios": {key: medians["sink"][key] / medians["stock"][key] for key in medians["sink"]},
        "beside": passing,
    }
    record.write(args.json, result)
    draw_picture(args.json.with_suffix(".png"), result)
    print(result["medians"], result["ratios"], passing["medians_s"], passing["ratio"], sep="\n")


def draw_picture(path: Path, result: dict[str, Any]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(9, 3.4))
    keys = {"tokens_per_second": "tokens/s", "ttft_p50_s": "TTFT p50", "ttft_p95_s": "TTFT p95"}
    left.bar(list(keys.values()), [result["ratios"][key] for key in keys])
    left.axhline(1, color="black", linewidth=0.8)
    left.set_title(f"{result['chats']} chats at once, over stock vLLM", fontsize=9)
    names = {"alone_s": "alone", "beside_streams_s": "streams", "beside_waiting_s": "and queue"}
    right.boxplot(
        [1000 * np.array(result["beside"][key]) for key in names], tick_labels=list(names.values())
    )
    right.set_ylim(bottom=0)
    right.set_ylabel("ms")
    right.set_title("a request of four tokens", fontsize=9)
    figure.tight_layout()
    figure.savefig(path, dpi=140)


if __name__ == "__main__":
    main()
