"""Result files by name, and what is read of them."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

Result = dict[str, Any]


def load(folders: Iterable[Path]) -> dict[str, Result]:
    """Every result of some folders by its file's name; the first folder's if several have it."""
    found: dict[str, Result] = {}
    for folder in folders:
        for path in sorted(folder.glob("*.json")):
            found.setdefault(path.stem, json.loads(path.read_text()))
    return found


def perplexity(result: Result, first: int, last: int) -> float | None:
    """Over the points of the curve inside ``[first, last)``, tokens; None without any."""
    points = [p for p in result["curve"] if p["from"] >= first and p["to"] <= last]
    weights = [p["to"] - p["from"] + 1 for p in points]
    if not points:
        return None
    nll = math.fsum(p["nll"] * w for p, w in zip(points, weights, strict=True))
    return math.exp(nll / sum(weights))


def sampled(result: Result, positions: set[int] | None = None) -> float | None:
    """Over the singly reported tokens at these positions; all if None."""
    told = [lp for at, lp in result.get("samples", []) if positions is None or at in positions]
    return math.exp(-math.fsum(told) / len(told)) if told else None


def number(value: float | None) -> str:
    """As a table shows it."""
    if value is None:
        return "–"
    if value >= 1000:
        return f"{value:,.0f}"
    return f"{value:.2f}" if value < 100 else f"{value:.1f}"
