"""Several curves of ``benchmarks.quality`` in one picture.

python -m benchmarks.overlay --png out.png sink.json window.json full.json
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any


def label(result: dict[str, Any]) -> str:
    if result["policy"] == "full":
        return "full attention (vLLM unchanged)"
    sinks, window = result["sink_tokens"], result["window_tokens"]
    if result["policy"] == "window":
        return f"window of {window}, no sinks: {result['perplexity']:.1f}"
    return f"{sinks} sinks + window of {window}: {result['perplexity']:.1f}"


def main() -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    parser = argparse.ArgumentParser(prog="benchmarks.overlay", description=__doc__)
    parser.add_argument("results", nargs="+", type=Path)
    parser.add_argument("--png", required=True, type=Path)
    args = parser.parse_args()
    results = [json.loads(path.read_text()) for path in args.results]
    figure, axes = pyplot.subplots(figsize=(8, 4.2))
    for result in results:
        points = result["curve"]
        axes.plot(
            [p["to"] for p in points],
            [p["perplexity"] for p in points],
            linewidth=1.4,
            label=label(result),
        )
    first = results[0]
    axes.axvline(first["native_context"], color="grey", linestyle="--", linewidth=1)
    axes.annotate(
        "the model's context",
        (first["native_context"], 0.66),
        xycoords=("data", "axes fraction"),
        rotation=90,
        ha="right",
        va="top",
        color="grey",
    )
    axes.set_yscale("log")
    axes.set_xlabel(f"position in {first['text'].removesuffix('.txt')} (tokens)")
    axes.set_ylabel(f"perplexity over {first['bin']} tokens")
    axes.set_title(f"{first['model']}, {first['dtype']}, {first['run']['hardware']}", fontsize=10)
    axes.legend(loc="upper left", frameon=False)
    figure.tight_layout()
    figure.savefig(args.png, dpi=140)


if __name__ == "__main__":
    main()
