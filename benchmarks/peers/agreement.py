"""How far each peer is from the paper's policy, token by token.

    python -m benchmarks.peers.agreement --json OUT [--peers NAME,...] [--tokens N]

The same text is teacher-forced through each peer, in float32 if it has a choice, and through the
independent reference of ``tests/reference``; the log-probabilities of the text's own tokens are
compared once the cache is full. The result is written after each peer, and peers already in it
are kept.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from pathlib import Path
from typing import Any

from benchmarks import record
from benchmarks.peers import gguf
from benchmarks.peers.catalogue import PEERS, Entry
from benchmarks.peers.driver import Driver, DriverError
from benchmarks.peers.texts import text_tokens


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="benchmarks.peers.agreement",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", default="models/smollm2-135m-instruct")
    parser.add_argument("--text", type=Path, default=Path("models/texts/pride_and_prejudice.txt"))
    parser.add_argument("--tokens", type=int, default=640)
    parser.add_argument("--sink-tokens", type=int, default=4)
    parser.add_argument("--cache-tokens", type=int, default=256, help="S + W")
    parser.add_argument("--peers", help="separated by semicolons; default: all that can score")
    parser.add_argument("--json", required=True, type=Path, help="where the result goes")
    return parser.parse_args()


def reference(args: argparse.Namespace, tokens: list[int]) -> list[float]:
    """Log-probability of each token but the first, float32."""
    from tests.reference import SinkReference

    window = args.cache_tokens - args.sink_tokens
    oracle = SinkReference(args.model, args.sink_tokens, window, progress=True)
    return [float(value) for value in oracle.logprobs_of(tokens)]


def score(name: str, entry: Entry, args: argparse.Namespace, tokens: list[int]) -> dict[str, Any]:
    """One peer's log-probabilities, or why there are none."""
    log = args.json.with_suffix(".logs") / f"{name.replace(' ', '-')}.log"
    driver = Driver(entry.driver, entry.environment, log, entry.variables)
    begin = time.perf_counter()
    try:
        settings = {
            "model": args.model,
            "gguf": str(gguf.path(entry.gguf)),
            "sink_tokens": args.sink_tokens,
            "cache_tokens": args.cache_tokens,
            "dtype": "float32",
            "streams": 1,
        }
        told = driver.ask("load", settings=settings)
        logprobs = driver.ask("score", tokens=tokens)["logprobs"]
        peak = driver.ask("memory")["peak_bytes"]
    except DriverError as error:
        return {"error": str(error)}
    finally:
        driver.stop()
    return {
        "versions": told["versions"],
        "policy": entry.policy,
        "weights": entry.gguf if "llama" in name else "float32",
        "logprobs": logprobs,
        "peak_bytes": peak,
        "seconds": time.perf_counter() - begin,
    }


def compare(logprobs: list[float], truth: list[float], cache_tokens: int) -> dict[str, float]:
    """Entries after the first eviction: entry i was predicted from i + 1 tokens."""
    pairs = list(zip(logprobs, truth, strict=True))[cache_tokens:]
    apart = [abs(a - b) for a, b in pairs]
    return {
        "compared_tokens": len(pairs),
        "largest_difference": max(apart),
        "mean_difference": statistics.mean(apart),
        "perplexity": math.exp(-statistics.mean(a for a, _ in pairs)),
        "reference_perplexity": math.exp(-statistics.mean(b for _, b in pairs)),
    }


def draw(result: dict[str, Any], path: Path) -> None:
    """Largest and mean difference to the policy, by peer, and perplexity."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = [(name, row) for name, row in result["peers"].items() if "logprobs" in row]
    rows.sort(key=lambda item: item[1]["mean_difference"])
    names = [name for name, _ in rows]
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(12, 0.8 + 0.42 * len(rows)), sharey=True)
    for key, colour in (("largest_difference", "tab:red"), ("mean_difference", "tab:blue")):
        values = [row[key] for _, row in rows]
        left.plot(values, names, "o", color=colour, label=key.replace("_", " "))
        for value, name in zip(values, names, strict=True):
            left.annotate(f"{value:.1g}", (value, name), (0, 5), textcoords="offset points")
    left.set(xscale="log", xlabel="difference in log-probability to the float32 reference (nats)")
    left.grid(axis="x", alpha=0.3)
    left.legend(fontsize=8)
    right.barh(names, [row["perplexity"] for _, row in rows], color="tab:grey")
    for name, row in rows:
        right.annotate(f" {row['perplexity']:.2f}", (row["perplexity"], name), va="center")
    right.axvline(rows[0][1]["reference_perplexity"], color="tab:green", label="reference")
    right.set(xlabel="perplexity over the same tokens")
    right.legend(fontsize=8)
    figure.suptitle(
        f"The sink policy, {result['sink_tokens']} sinks in a cache of {result['cache_tokens']}: "
        f"who computes it, over {rows[0][1]['compared_tokens']} tokens past the first eviction"
    )
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def main() -> None:
    from tqdm import tqdm

    args = parse_args()
    names = args.peers.split(";") if args.peers else [n for n in PEERS if PEERS[n].agreement]
    tokens = text_tokens(args.model, args.text, args.tokens)
    settings = {
        "model": Path(args.model).name,
        "text": args.text.name,
        "tokens": args.tokens,
        "sink_tokens": args.sink_tokens,
        "cache_tokens": args.cache_tokens,
    }
    told = record.earlier(args.json, settings)
    result: dict[str, Any] = {
        "benchmark": "peers agreement",
        **settings,
        "reference": told.get("reference") or reference(args, tokens),
        "peers": told.get("peers", {}),
    }
    for name in tqdm(names, desc="peers"):
        if "logprobs" in result["peers"].get(name, {}):
            continue
        row = score(name, PEERS[name], args, tokens)
        if "logprobs" in row:
            row |= compare(row["logprobs"], result["reference"], args.cache_tokens)
        result["peers"][name] = row
        record.write(args.json, result)
        shown = {k: v for k, v in row.items() if k not in ("logprobs", "versions")}
        print(f"{name}: {shown}", flush=True)
    draw(result, args.json.with_suffix(".png"))


if __name__ == "__main__":
    main()
