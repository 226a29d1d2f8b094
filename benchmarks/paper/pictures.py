"""The pictures of the evidence, from result files; each can be read without its text."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, NullFormatter

from benchmarks.paper.results import Result, load

GREEN, BLUE, RED, GREY = "#2f6f4f", "#3b6ea8", "#b5483a", "#777777"
AMBER = "#c9962b"
COLORS = {"sink": GREEN, "window": BLUE, "full": RED, "recompute": AMBER}


def _mark(axes: Any, at: float, text: str) -> None:
    """A line across the picture, labelled with what begins or ends there."""
    axes.axvline(at, color=GREY, linestyle="--", linewidth=1)
    axes.annotate(
        text,
        (at, 0.98),
        xycoords=("data", "axes fraction"),
        rotation=90,
        ha="right",
        va="top",
        color=GREY,
        fontsize=8,
    )


def _plain_numbers(axes: Any) -> None:
    """A logarithmic axis that says 50 and 2,000, of what is drawn already. One decade has few
    powers of ten to name; several have no room for all of 1 to 9."""
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    named = (1, 2, 3, 4, 5, 7) if high < 10 * low else (1, 2, 5)
    axes.yaxis.set_major_locator(LogLocator(subs=named))
    axes.yaxis.set_major_formatter(lambda y, _: f"{y:,g}")
    axes.yaxis.set_minor_formatter(NullFormatter())


def label(result: Result) -> str:
    """What a curve is, in a reader's words."""
    if result["policy"] == "full":
        return "full attention (vLLM unchanged)"
    if result["policy"] == "recompute":
        return f"sliding window with recomputation, {result['cache_tokens']}"
    sinks, window = result["sink_tokens"], result["window_tokens"]
    if not sinks:
        return f"window of {window}, no sinks"
    where = ", at their true positions" if result.get("true_positions") else ""
    return f"{sinks} sinks{where} + window of {window}"


def curves(axes: Axes, results: list[Result], colors: list[str]) -> None:
    """Perplexity by position, with the model's context."""
    for result, color in zip(results, colors, strict=True):
        points = result["curve"]
        at = [(p["from"] + p["to"]) / 2 for p in points]
        values = [p["perplexity"] for p in points]
        if result["policy"] == "recompute":
            low = [v * (1 - 2.718 ** -p["nll_error"]) for v, p in zip(values, points, strict=True)]
            high = [v * (2.718 ** p["nll_error"] - 1) for v, p in zip(values, points, strict=True)]
            style = {"fmt": "o", "markersize": 3, "elinewidth": 0.8, "zorder": 3}
            axes.errorbar(at, values, yerr=[low, high], color=color, label=label(result), **style)
        else:
            axes.plot(at, values, color=color, linewidth=1.3, label=label(result))
    context = results[0]["native_context"]
    _mark(axes, context, f"the model's context, {context:,}")
    _plain_numbers(axes)
    axes.set_xlabel("position in the text (tokens)")
    axes.xaxis.set_major_formatter(lambda x, _: f"{x:,.0f}")


def figure3_results(results: dict[str, Result]) -> dict[str, Result]:
    """What Figure 3 compares; a policy's short run if its long one is missing."""
    names = {"figure3-window": "window", "figure3-sink": "sink"}
    names |= {"figure3-recompute": "", "full": ""}
    found = {name: results.get(name) or results.get(short) for name, short in names.items()}
    return {name: result for name, result in found.items() if result is not None}


def figure3(results: dict[str, Result], path: Path) -> bool:
    chosen = list(figure3_results(results).values())
    if not chosen:
        return False
    figure, axes = pyplot.subplots(figsize=(9, 4.4))
    curves(axes, chosen, [COLORS[r["policy"]] for r in chosen])
    axes.set_ylabel("perplexity (lower is better)")
    longest = max(chosen, key=lambda r: r["tokens"])
    axes.set_title(
        f"{longest['model']} reads {longest['tokens']:,} tokens of a novel, {longest['dtype']}"
    )
    axes.legend(frameon=False, loc="upper right", fontsize=9)
    return _save(figure, path)


def square(results: dict[str, Result], path: Path, prefix: str = "square") -> bool:
    """A panel for each window and dtype that was run with true positions."""
    truths = [r for n, r in results.items() if n.startswith(f"{prefix}-sinks-true")]
    if not truths:
        return False
    columns = min(len(truths), 2)
    rows = -(-len(truths) // columns)
    figure, panels = pyplot.subplots(
        rows, columns, figsize=(2 + 5.5 * columns, 5.2 * rows), squeeze=False, sharey=True
    )
    for spare in panels.flat[len(truths) :]:
        spare.set_axis_off()
    for axes, truth in zip(panels.flat, truths, strict=False):
        others = [partner(results, truth, s) for s in (truth["sink_tokens"], 0)]
        lines = [(truth, RED), (others[0], GREEN), (others[1], BLUE)]
        lines.append((unbounded(results, truth), AMBER))
        shown = [(result, color) for result, color in lines if result is not None]
        curves(axes, [result for result, _ in shown], [color for _, color in shown])
        axes.set_title(f"{truth['model']}, {truth['dtype']}, W {truth['window_tokens']:,}")
        axes.legend(frameon=False, fontsize=9, loc="upper center", bbox_to_anchor=(0.5, -0.13))
    for axes in panels[:, 0]:
        axes.set_ylabel("perplexity (lower is better)")
    return _save(figure, path)


def _beside(result: Result, truth: Result, *more: str) -> bool:
    """The same model's scores of the same text, on the same machine."""
    if result["benchmark"] != "quality":
        return False
    same = all(result[key] == truth[key] for key in ("text", "dtype", "model", *more))
    return same and result["run"]["hardware"] == truth["run"]["hardware"]


def partner(results: dict[str, Result], truth: Result, sinks: int) -> Result | None:
    """The same text, dtype, cache and machine at cache positions, with so many sinks."""
    size = truth["sink_tokens"] + truth["window_tokens"]
    for result in results.values():
        if not _beside(result, truth, "tokens") or result["policy"] == "full":
            continue
        if result.get("true_positions") or result.get("newlines"):
            continue
        if result["sink_tokens"] == sinks and sinks + result["window_tokens"] == size:
            return result
    return None


def unbounded(results: dict[str, Result], truth: Result) -> Result | None:
    """Full attention over the beginning of the same text, on the same machine."""
    for result in results.values():
        if _beside(result, truth) and result["policy"] == "full":
            return result
    return None


def streameval(results: dict[str, Result], path: Path) -> bool:
    chosen = {
        p: results[f"streameval-{p}"]
        for p in ("full", "window", "sink")
        if f"streameval-{p}" in results
    }
    if not chosen:
        return False
    figure, panels = pyplot.subplots(1, 2, figsize=(11, 5.2), sharey=True)
    titles = ("within the model's context", "past the model's context")
    for axes, key, title in zip(
        panels, ("by_distance", "by_distance_past_context"), titles, strict=True
    ):
        for policy, result in chosen.items():
            rows = result[key]
            if not rows:
                continue
            bars = [
                [max(0.0, r["choice"] - r["choice_interval"][0]) for r in rows],
                [max(0.0, r["choice_interval"][1] - r["choice"]) for r in rows],
            ]
            axes.errorbar(
                [r["mean_distance"] for r in rows],
                [r["choice"] for r in rows],
                yerr=bars,
                color=COLORS[policy],
                marker="o",
                markersize=4,
                capsize=2,
                linewidth=1.3,
                label=label(result),
            )
        window = next((r["window_tokens"] for r in chosen.values() if r["window_tokens"]), None)
        if window:
            _mark(axes, window, "the window ends")
        words = next(iter(chosen.values()))["words"]
        axes.axhline(1 / words, color=GREY, linewidth=0.8, linestyle=":")
        axes.set_xscale("log")
        axes.set_ylim(0, 1.02)
        axes.set_title(title)
        axes.set_xlabel("how far back the answer lies (tokens)")
        axes.xaxis.set_major_formatter(lambda x, _: f"{x:,g}")
        axes.legend(frameon=False, fontsize=9, loc="upper center", bbox_to_anchor=(0.5, -0.14))
    panels[0].set_ylabel(f"right word chosen (of {words}; dotted: chance)")
    return _save(figure, path)


def time_and_memory(result: Result, path: Path) -> bool:
    """Time and KV memory by cache size, both sides."""
    sizes = result["sizes"]
    at = [size["cache_tokens"] for size in sizes]
    figure, (time, memory) = pyplot.subplots(1, 2, figsize=(10, 4.2))
    colors = {"sink": GREEN, "recomputation": RED}
    for name, color in colors.items():
        sides = [size["sides"][name] for size in sizes]
        median = [s["median_ms"] for s in sides]
        spread = [
            [m - s["quartile1_ms"] for m, s in zip(median, sides, strict=True)],
            [s["quartile3_ms"] - m for m, s in zip(median, sides, strict=True)],
        ]
        style = {"color": color, "marker": "o", "capsize": 3}
        time.errorbar(at, median, yerr=spread, label=name, **style)
        kv = [s["kv_bytes"] / 2**20 for s in sides]
        memory.plot(at, kv, color=color, marker="o", linestyle="-" if name == "sink" else "--")
    for size in sizes:
        time.annotate(
            f"{size['ratio']:.0f}x" if size["ratio"] >= 10 else f"{size['ratio']:.1f}x",
            (size["cache_tokens"], size["sides"]["recomputation"]["median_ms"]),
            textcoords="offset points",
            xytext=(0, 6),
            ha="center",
            color=RED,
        )
    for axes, text in ((time, "time per output token (ms)"), (memory, "KV memory held (MiB)")):
        axes.set_xscale("log", base=2)
        axes.margins(0.08, 0.15)
        _plain_numbers(axes)
        axes.set_xticks(at, [f"{n:,}" for n in at])
        axes.set_xlabel("tokens in the cache")
        axes.set_ylabel(text)
    time.legend(frameon=False)
    figure.suptitle(
        f"{result['shape']}, {result['layers']} layers, {result['dtype']}, batch "
        f"{result['batch']}, {result['hardware']}",
        fontsize=10,
    )
    return _save(figure, path)


def _save(figure: Any, path: Path) -> bool:
    figure.tight_layout()
    figure.savefig(path, dpi=130)
    pyplot.close(figure)
    return True


def _figure10(name: str) -> Callable[[dict[str, Result], Path], bool]:
    def draw(results: dict[str, Result], path: Path) -> bool:
        if name not in results:
            return False
        return time_and_memory(results[name], path)

    return draw


def draw_all(folders: Iterable[Path], out: Path) -> list[Path]:
    """Draws every picture whose results exist; their paths."""
    results = load(folders)
    pictures: dict[str, Callable[[dict[str, Result], Path], bool]] = {
        "figure3": figure3,
        "square": square,
        "square-million": lambda r, p: square(r, p, "square-million"),
        "square-gemma": lambda r, p: square(r, p, "square-gemma"),
        "square-gemma-million": lambda r, p: square(r, p, "square-gemma-million"),
        "streameval": streameval,
        "figure10": _figure10("figure10-cpu"),
        "figure10-gpu": _figure10("figure10-gpu-sizes"),
    }
    out.mkdir(parents=True, exist_ok=True)
    paths = {out / f"evidence-{name}.png": draw for name, draw in pictures.items()}
    return [path for path, draw in paths.items() if draw(results, path)]
