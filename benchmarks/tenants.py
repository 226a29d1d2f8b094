"""One tenant's flood and another's time to the first token.

    python -m benchmarks.tenants --model DIR --json out.json

One server with ``--seats`` seats. A busy tenant keeps all of them taken, with as many clients; or
it floods the server, with ``--flood`` requests waiting at any time. A second tenant requests short
answers, one after the other, in both cases in turns. Tenants take turns in the queue, so its times
should not depend on the case.
"""

from __future__ import annotations

import argparse
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import record
from benchmarks.served import Served, serve


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="benchmarks.tenants",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", required=True, help="a model folder or name")
    parser.add_argument("--seats", type=int, default=8, help="--max-num-seqs of the server")
    parser.add_argument("--flood", type=int, default=200, help="requests that wait")
    parser.add_argument("--tokens", type=int, default=24, help="of the busy tenant's answers")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--asks", type=int, default=15, help="of the second tenant, in each round")
    parser.add_argument("--serve-args", default="--enforce-eager")
    parser.add_argument("--json", required=True, type=Path)
    return parser.parse_args()


@contextmanager
def busy(served: Served, clients: int, tokens: int) -> Iterator[None]:
    """Clients of one tenant, ``clients`` of them, each with one request after the other."""
    stop = threading.Event()

    def ask(i: int) -> None:
        body = {
            "model": "model",
            "prompt": f"{i}: the sea is",
            "max_tokens": tokens,
            "ignore_eos": True,
            "user": "busy",
        }
        while not stop.is_set():
            served.post("/v1/completions", body)

    threads = [threading.Thread(target=ask, args=(i,), daemon=True) for i in range(clients)]
    for thread in threads:
        thread.start()
    try:
        time.sleep(5)
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def first_tokens(served: Served, count: int) -> list[float]:
    """Seconds to the first token of each request of the second tenant."""
    seconds = []
    for i in range(count):
        body = {
            "model": "model",
            "prompt": f"{i} and one",
            "max_tokens": 4,
            "ignore_eos": True,
            "user": "other",
        }
        begin = time.perf_counter()
        events = served.stream("/v1/completions", body)
        next(events)
        seconds.append(time.perf_counter() - begin)
        for _ in events:
            pass
    return seconds


def main() -> None:
    args = parse_args()
    from tqdm import tqdm

    flags = f"--served-model-name model --kv-policy sink --max-num-seqs {args.seats}".split()
    flags += ["--sink-tenant-label", "user", *args.serve_args.split()]
    sides: dict[str, list[list[float]]] = {"seats": [], "flood": []}
    waited: dict[str, list[float]] = {"seats": [], "flood": []}
    clients = {"seats": args.seats, "flood": args.seats + args.flood}
    with serve(args.model, args.json.with_suffix(".log"), flags) as served:
        first_tokens(served, 3)  # the first request may compile
        for turn in tqdm(range(args.rounds), desc="rounds"):
            for name in ("seats", "flood") if turn % 2 == 0 else ("flood", "seats"):
                with busy(served, clients[name], args.tokens):
                    waited[name].append(served.metric("vllm:num_requests_waiting"))
                    sides[name].append(first_tokens(served, args.asks))
    quantiles = {
        name: {
            f"ttft_p{q}_s": float(np.quantile(np.concatenate(rounds), q / 100)) for q in (50, 95)
        }
        for name, rounds in sides.items()
    }
    result: dict[str, Any] = {
        "benchmark": "tenants",
        "model": Path(args.model).name,
        "seats": args.seats,
        "flood": args.flood,
        "waiting": waited,
        "sides": sides,
        "quantiles": quantiles,
        "ratios": {q: quantiles["flood"][q] / quantiles["seats"][q] for q in quantiles["seats"]},
    }
    record.write(args.json, result)
    draw(args.json.with_suffix(".png"), result)
    print(result["quantiles"], result["ratios"], sep="\n")


def draw(path: Path, result: dict[str, Any]) -> None:
    """The distribution of the times of both sides."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4))
    for name, label in (("seats", "all seats taken"), ("flood", f"and {result['flood']} waiting")):
        times = np.sort(np.concatenate(result["sides"][name]))
        axes.step(times, np.arange(1, len(times) + 1) / len(times), where="post", label=label)
    axes.set(xlabel="seconds to the first token", ylabel="part of the requests", ylim=(0, 1))
    axes.set_title("A tenant beside another's flood")
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


if __name__ == "__main__":
    main()
