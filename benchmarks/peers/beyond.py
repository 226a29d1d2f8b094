"""What happens to each peer at the model's native context, and past it.

    python -m benchmarks.peers.beyond --json OUT [--peers NAME;...] [--tokens N]

One text, twice as long as the model's context, is teacher-forced through each peer, in chunks if
the peer takes several tokens per call: perplexity by position, or the error of a peer that refuses.
The result is written after each peer, and peers already in it are kept.
"""

from __future__ import annotations

import argparse
import math
import statistics
from pathlib import Path
from typing import Any

from benchmarks import engines, record
from benchmarks.peers import gguf
from benchmarks.peers.catalogue import PEERS, Entry
from benchmarks.peers.driver import Driver, DriverError
from benchmarks.peers.texts import text_tokens

#: Their windows are always shorter than the context, or nothing can be scored.
LEFT_OUT = ("recomputation",)

#: Tokens of a point of the curve.
POINT = 512


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="benchmarks.peers.beyond",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--model", default="models/smollm2-135m-instruct", help="the checkpoint's folder")
    add("--text", type=Path, default=Path("models/texts/pride_and_prejudice.txt"))
    add("--tokens", type=int, default=16_384)
    add("--chunk", type=int, default=32, help="tokens per call, if the peer takes several")
    add("--sink-tokens", type=int, default=4)
    add("--cache-tokens", type=int, default=256, help="S + W")
    add("--peers", help="separated by semicolons; default: all that can score")
    add("--json", required=True, type=Path, help="where the result goes")
    args = parser.parse_args()
    scoring = [n for n in PEERS if PEERS[n].agreement and n not in LEFT_OUT]
    args.names = args.peers.split(";") if args.peers else scoring
    if unknown := set(args.names) - set(scoring):
        parser.error(f"--peers: {sorted(unknown)} is not allowed; allowed: {scoring}")
    for flag in ("tokens", "chunk"):
        if getattr(args, flag) < 1:
            parser.error(f"--{flag}: {getattr(args, flag)} is not allowed; allowed: at least 1")
    return args


def read(name: str, entry: Entry, args: argparse.Namespace, tokens: list[int]) -> dict[str, Any]:
    """One peer's perplexity by position, or why there is none."""
    log = args.json.with_suffix(".logs") / f"{name.replace(' ', '-')}.log"
    driver = Driver(entry.driver, entry.environment, log, entry.variables)
    settings = {
        "model": args.model,
        "gguf": str(gguf.path(entry.gguf)),
        "sink_tokens": args.sink_tokens,
        "cache_tokens": args.cache_tokens,
        "dtype": "float32",
        "streams": 1,
        "length": args.tokens,
    }
    try:
        told = driver.ask("load", settings=settings)
        logprobs = driver.ask("stream", tokens=tokens, chunk=args.chunk)["logprobs"]
    except DriverError as error:
        return {"policy": entry.policy, "error": str(error)}
    finally:
        driver.stop()
    return {
        "policy": entry.policy,
        "versions": told["versions"],
        "curve": curve(logprobs),
        "by_position": by_position(logprobs, engines.native_context(args.model)),
    }


def curve(logprobs: list[float]) -> list[list[float]]:
    """Points of the picture: the token at which ``POINT`` tokens end, and their perplexity."""
    return [
        [begin + POINT, _perplexity(logprobs[begin : begin + POINT])]
        for begin in range(0, len(logprobs) - POINT + 1, POINT)
    ]


def _perplexity(logprobs: list[float]) -> float:
    return math.exp(min(700.0, -statistics.mean(logprobs)))


def by_position(logprobs: list[float], native: int) -> list[dict[str, float]]:
    """Perplexity over halves of the native context."""
    half = native // 2
    rows = []
    for begin in range(0, len(logprobs), half):
        part = logprobs[begin : begin + half]
        if len(part) < half // 2:
            continue
        rows.append({"from": begin, "to": begin + len(part), "perplexity": _perplexity(part)})
    return rows


def draw(result: dict[str, Any], path: Path) -> None:
    """A line for each peer that continued."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(9, 4.8))
    for name, row in result["peers"].items():
        points = row.get("curve", [])
        thick = 2.2 if name == "vllm-sink" else 1.0
        if points:
            axes.plot(*zip(*points, strict=True), label=name, linewidth=thick)
    axes.axvline(result["native_context"], color="grey", linestyle="--", linewidth=1)
    axes.set(yscale="log", xlabel="position in the text (tokens)", ylabel="perplexity")
    axes.set_title(
        f"{result['model']}: {result['sink_tokens']} sinks in a cache of "
        f"{result['cache_tokens']} tokens, past the context of {result['native_context']:,}"
    )
    axes.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def main() -> None:
    from tqdm import tqdm

    args = parse_args()
    tokens = text_tokens(args.model, args.text, args.tokens)
    settings = {
        "model": Path(args.model).name,
        "text": args.text.name,
        "tokens": args.tokens,
        "chunk": args.chunk,
        "sink_tokens": args.sink_tokens,
        "cache_tokens": args.cache_tokens,
    }
    told = record.earlier(args.json, settings)
    result: dict[str, Any] = {
        "benchmark": "peers beyond",
        **settings,
        "native_context": engines.native_context(args.model),
        "peers": told.get("peers", {}),
    }
    for name in tqdm(args.names, desc="peers"):
        if "curve" in result["peers"].get(name, {}):
            continue
        row = read(name, PEERS[name], args, tokens)
        result["peers"][name] = row
        record.write(args.json, result)
        shown = [f"{p['perplexity']:.2f}" for p in row.get("by_position", [])]
        tqdm.write(f"{name}: {', '.join(shown) or row['error'][-200:]}")
    draw(result, args.json.with_suffix(".png"))


if __name__ == "__main__":
    main()
