"""The tables of the evidence, in Markdown, from result files."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from benchmarks.paper.pictures import figure3_results, partner, unbounded
from benchmarks.paper.results import Result, number, perplexity, sampled

Results = dict[str, Result]

#: Stands for a missing result: none is invented or carried over.
ABSENT = "*not run yet*"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Markdown, the first column to the left."""
    if not rows:
        return ABSENT
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def figure3(results: Results) -> str:
    """Perplexity by range of positions, and at the sampled positions past the context."""
    names = {
        "figure3-sink": "**sink**, S 4, W 509",
        "figure3-recompute": "sliding window with recomputation, 513",
        "figure3-window": "window of 513, no sinks",
        "full": "full attention, its rotary table widened",
    }
    chosen = figure3_results(results)
    found = {name: chosen[name] for name in names if name in chosen}
    if not found:
        return ABSENT
    native = next(iter(found.values()))["native_context"]
    ranges = [
        (1, native),
        (native, 2 * native),
        (2 * native, 5 * native),
        (5 * native, 10 * native),
    ]
    positions = {
        at for at, _ in found.get("figure3-recompute", {}).get("samples", []) if at >= native
    }
    head = ["perplexity at", *(f"{_k(a)}–{_k(b)}" for a, b in ranges), "samples past the context"]
    rows = []
    for name, result in found.items():
        cells = [_cell(result, a, b) for a, b in ranges]
        if name == "figure3-recompute":
            cells = ["–"] * len(ranges)
        long = result["tokens"] > ranges[-1][0]
        at_samples = sampled(result, positions) if positions and long else None
        rows.append([names[name], *cells, number(at_samples)])
    note = f"\n\nThe last column is over {len(positions)} single tokens." if positions else ""
    return table(head, rows) + note


def _cell(result: Result, first: int, last: int) -> str:
    """Perplexity over ``[first, last)``; names the end if the curve ends inside."""
    value = perplexity(result, first, last)
    ends = result["tokens"] < last and value is not None
    return number(value) + (f" (to {_k(result['tokens'])})" if ends else "")


def _k(tokens: int) -> str:
    return "0" if tokens <= 1 else f"{tokens // 1024} K"


def _whole(result: Result | None) -> list[str]:
    if result is None:
        return ["–", "–"]
    return [number(result["perplexity"]), number(result.get("perplexity_last_8192"))]


def _by_policy(cases: dict[str, str], results: Results, first: str) -> str:
    rows = [[text, *_whole(results[name])] for name, text in cases.items() if name in results]
    return table([first, "perplexity", "last 8,192 tokens"], rows)


def table1(results: Results) -> str:
    cases = {
        "table1-window": "0 + 513 (the newlines leave the window)",
        "table1-newlines": "4 newlines + 509",
        "sink": "4 of the text's own first tokens + 509",
    }
    return _by_policy(cases, results, "cache")


def table2(results: Results) -> str:
    cases = {"window": "0 + 513", "table2-1-sinks": "1 + 512", "table2-2-sinks": "2 + 511"}
    cases |= {"sink": "4 + 509", "table2-8-sinks": "8 + 505"}
    return _by_policy(cases, results, "sinks + window")


def table6(results: Results) -> str:
    cases = {"table6-257": "4 + 253", "sink": "4 + 509"}
    cases |= {"table6-1025": "4 + 1,021", "table6-2049": "4 + 2,045"}
    return _by_policy(cases, results, "sinks + window")


def square(results: Results, prefix: str = "square-sinks-true") -> str:
    """A row for each window, dtype and kind of cache; columns of positions."""
    rows = []
    head: list[str] = []
    for name, truth in sorted(results.items()):
        if not name.startswith(prefix):
            continue
        native, tokens = truth["native_context"], truth["tokens"]
        ends = [native, 3 * native // 2, 2 * native, 3 * native]
        ends += [12 * native, tokens] if tokens > 12 * native else []
        ranges = list(zip([1, *ends[:-1]], ends, strict=True))
        head = ["", *(f"{_k(a)}–{_k(b)}" for a, b in ranges)]
        size = f"W {truth['window_tokens']:,}, {truth['dtype']}"
        kinds = {
            f"4 sinks, cache positions, {size}": partner(results, truth, truth["sink_tokens"]),
            f"4 sinks, **true** positions, {size}": truth,
            f"no sinks, either, {size}": partner(results, truth, 0),
        }
        if (full := unbounded(results, truth)) is not None:
            kinds[f"full attention, {truth['dtype']}"] = full
        for text, result in kinds.items():
            cells = ["–"] * len(ranges)
            if result is not None:
                cells = [_cell(result, a, b) for a, b in ranges]
            rows.append([text, *cells])
    return table(head, rows)


def square_million(results: Results) -> str:
    return square(results, "square-million-sinks-true")


def square_gemma(results: Results) -> str:
    return square(results, "square-gemma-sinks-true")


def square_gemma_million(results: Results) -> str:
    return square(results, "square-gemma-million-sinks-true")


def streameval(results: Results) -> str:
    """Right choices (and greedy answers) by distance, for the stream within and past context."""
    policies = [p for p in ("sink", "window", "full") if f"streameval-{p}" in results]
    parts = {"by_distance": "within the context", "by_distance_past_context": "past it"}
    distances = sorted(
        {r["distance"] for p in policies for k in parts for r in results[f"streameval-{p}"][k]}
    )
    rows = []
    for distance in distances:
        row = [f"{distance:,}"]
        for policy in policies:
            for key in parts:
                told = results[f"streameval-{policy}"][key]
                hit = next((r for r in told if r["distance"] == distance), None)
                row.append(f"{hit['choice']:.0%} ({hit['exact']:.0%})" if hit else "–")
        rows.append(row)
    head = ["tokens back", *(f"{p}, {text}" for p in policies for text in parts.values())]
    return table(head, rows)


def figure10(results: Results, names: Sequence[str] = ("figure10-cpu",)) -> str:
    rows = []
    for name in names:
        result = results.get(name)
        if result is None:
            continue
        for size in result["sizes"]:
            sink, other = size["sides"]["sink"], size["sides"]["recomputation"]
            rows.append(
                [
                    f"{size['cache_tokens']:,}, batch {result['batch']}, {result['layers']} layers",
                    _time(sink),
                    _time(other),
                    f"{size['ratio']:.1f}",
                    f"{sink['tokens_per_second']:,.0f} / {other['tokens_per_second']:,.2f}",
                    f"{sink['kv_bytes'] / 2**20:,.0f} / {other['kv_bytes'] / 2**20:,.0f} MiB",
                ]
            )
    head = ["cache", "sink (quartiles)", "recomputation", "ratio", "tokens/s", "KV held"]
    return table(head, rows)


def figure10_gpu(results: Results) -> str:
    return figure10(
        results, ("figure10-gpu-batch-1", "figure10-gpu-batch-64", "figure10-gpu-sizes")
    )


def _time(side: Result) -> str:
    return f"{side['median_ms']:,.1f} ms ({side['quartile1_ms']:,.1f}–{side['quartile3_ms']:,.1f})"


TABLES: dict[str, Callable[[Results], str]] = {
    "figure3": figure3,
    "table1": table1,
    "table2": table2,
    "table6": table6,
    "square": square,
    "square-million": square_million,
    "square-gemma": square_gemma,
    "square-gemma-million": square_gemma_million,
    "streameval": streameval,
    "figure10": figure10,
    "figure10-gpu": figure10_gpu,
}
