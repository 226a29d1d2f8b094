"""Draws the dashboard's panels from a live Prometheus, with matplotlib.

    python docs/dashboard_picture.py http://localhost:9090 docs/dashboard.png --seconds 300

Not Grafana: its panels, queries, legends, units and places, read from dashboard.json and asked over
Prometheus's HTTP API, for those who want to see the dashboard without one.
"""

from __future__ import annotations

import argparse
import json
import re
import time
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter

DASHBOARD = Path(__file__).parents[1] / "deploy" / "monitoring" / "dashboard.json"

BACKGROUND, PANEL, TEXT, FAINT = "#111217", "#181b1f", "#ccccdc", "#6e7079"
COLOURS = ("#73bf69", "#f2cc0c", "#5794f2", "#ff9830", "#f2495c", "#b877d9", "#8ab8ff")


def _query(url: str, expr: str, seconds: float) -> list[dict[str, Any]]:
    end = time.time()
    expr = expr.replace("$__rate_interval", f"{max(10, min(60, int(seconds / 3)))}s")
    expr = re.sub(r"\$(model|engine)\b", ".*", expr)
    params = {"query": expr, "start": end - seconds, "end": end, "step": max(1, seconds // 300)}
    with urllib.request.urlopen(
        f"{url}/api/v1/query_range?{urllib.parse.urlencode(params)}"
    ) as got:
        result: list[dict[str, Any]] = json.load(got)["data"]["result"]
    return result


def _legend(pattern: str, labels: dict[str, str]) -> str:
    return re.sub(r"\{\{(\w+)\}\}", lambda m: labels.get(m[1], ""), pattern)


def _scaled(value: float, steps: tuple[str, ...], base: float) -> str:
    for unit in steps:
        if abs(value) < base:
            return f"{value:.3g} {unit}".strip()
        value /= base
    return f"{value:.3g}"


def show(value: float, unit: str) -> str:
    """A value as Grafana would write it."""
    if unit == "s":
        return f"{value * 1000:.3g} ms" if abs(value) < 1 else f"{value:.3g} s"
    if unit == "percentunit":
        return f"{value * 100:.3g} %"
    if unit == "bytes":
        return _scaled(value, ("B", "KiB", "MiB", "GiB", "TiB"), 1024)
    return _scaled(value, ("", "K", "M", "G"), 1000) + ("/s" if unit == "ops" else "")


def _series(
    url: str, panel: dict[str, Any], seconds: float
) -> list[tuple[str, list[float], list[float]]]:
    lines = []
    end = time.time()
    for target in panel["targets"]:
        for found in _query(url, target["expr"], seconds):
            at = [t - end for t, _ in found["values"]]
            values = [float(v) for _, v in found["values"]]
            lines.append((_legend(target["legendFormat"], found["metric"]), at, values))
    return lines


def _stat(ax: Axes, panel: dict[str, Any], unit: str, lines: list[Any]) -> None:
    ax.set_xticks([])
    ax.set_yticks([])
    name, _, values = lines[0] if lines else ("no data", [], [])
    said = name if "=" in name else show(values[-1], unit) if values else "–"
    colour = COLOURS[0]
    for step in panel["fieldConfig"]["defaults"].get("thresholds", {}).get("steps", []):
        if values and step["value"] is not None and values[-1] >= step["value"]:
            colour = {"orange": COLOURS[3], "red": COLOURS[4]}[step["color"]]
    size = 22 if len(said) < 8 else 9
    ax.text(0.5, 0.45, said, ha="center", va="center", color=colour, size=size)


def _graph(ax: Axes, panel: dict[str, Any], unit: str, lines: list[Any]) -> None:
    custom = panel["fieldConfig"]["defaults"].get("custom", {})
    stacked = custom.get("stacking", {}).get("mode") == "normal"
    if stacked and lines:
        shared = sorted(set.union(*(set(map(round, at)) for _, at, _ in lines)))
        rows = []
        for _, at, values in lines:
            known = {round(t): v for t, v in zip(at, values, strict=True)}
            rows.append([known.get(t, 0.0) for t in shared])
        ax.stackplot(shared, rows, labels=[n for n, _, _ in lines], colors=COLOURS, alpha=0.7)
    else:
        for i, (name, at, values) in enumerate(lines):
            colour = COLOURS[i % len(COLOURS)]
            ax.plot(at, values, label=name, color=colour, linewidth=1.2)
            ax.fill_between(at, values, color=colour, alpha=0.08)
    ax.set_ylim(bottom=0)
    ax.yaxis.set_major_formatter(FuncFormatter(lambda v, _: show(v, unit)))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:.0f} s"))
    ax.tick_params(colors=FAINT, labelsize=6, length=2)
    ax.grid(color="#2c3235", linewidth=0.5)
    if lines:
        ax.legend(
            fontsize=6,
            labelcolor=TEXT,
            frameon=False,
            ncol=4,
            loc="upper left",
            bbox_to_anchor=(0, -0.1),
            borderpad=0,
        )
    else:
        ax.text(0.5, 0.5, "no data", transform=ax.transAxes, ha="center", color=FAINT)


def draw(url: str, out: Path, seconds: float) -> None:
    """Ask every panel's queries and draw them where the dashboard has them."""
    dashboard = json.loads(DASHBOARD.read_text())
    height = max(p["gridPos"].get("y", 0) + p["gridPos"]["h"] for p in dashboard["panels"])
    inches = height * 0.3
    figure = plt.figure(figsize=(13, inches), facecolor=BACKGROUND)
    for panel in dashboard["panels"]:
        at = panel["gridPos"]
        x, y, w, h = at.get("x", 0), at.get("y", 0), at["w"], at["h"]
        if panel["type"] == "row":
            where = (0.01, 1 - (y + 0.8) / height)
            figure.text(*where, panel["title"], color=TEXT, size=12, weight="bold")
            continue
        left, right = (0.012, 0.012) if panel["type"] == "stat" else (0.045, 0.012)
        low, high = (0.3, 1.1) if panel["type"] == "stat" else (1.9, 1.1)
        box = (x / 24 + left, 1 - (y + h - low) / height)
        size = (w / 24 - left - right, (h - low - high) / height)
        ax = figure.add_axes((*box, *size), facecolor=PANEL)
        ax.set_title(panel["title"], color=TEXT, size=8, loc="left", pad=3)
        for spine in ax.spines.values():
            spine.set_color("#2c3235")
        unit = panel["fieldConfig"]["defaults"].get("unit", "short")
        lines = _series(url, panel, seconds)
        (_stat if panel["type"] == "stat" else _graph)(ax, panel, unit, lines)
    figure.savefig(out, dpi=110, facecolor=BACKGROUND)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("url", help="Prometheus, as http://localhost:9090")
    parser.add_argument("out", type=Path, help="the PNG to write")
    parser.add_argument("--seconds", type=float, default=300, help="how far back (default: 300)")
    args = parser.parse_args()
    draw(args.url.rstrip("/"), args.out, args.seconds)


if __name__ == "__main__":
    main()
