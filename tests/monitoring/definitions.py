"""The dashboard and the rules as committed, read as Grafana and Prometheus read them."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

FOLDER = Path(__file__).parents[2] / "deploy" / "monitoring"
RULES = sorted((FOLDER / "rules").glob("*.yml"))
RULE_TESTS = sorted((FOLDER / "rule_tests").glob("*.yml"))


@dataclass(frozen=True)
class Target:
    """A query of a panel."""

    panel: str
    legend: str
    expr: str


def dashboard() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((FOLDER / "dashboard.json").read_text())
    return found


def panels() -> list[dict[str, Any]]:
    """All panels but the rows' own headings."""
    return [p for p in dashboard()["panels"] if p["type"] != "row"]


def targets() -> list[Target]:
    return [
        Target(panel["title"], target.get("legendFormat", ""), target["expr"])
        for panel in panels()
        for target in panel["targets"]
    ]


def filled(expr: str, rate_interval: str = "1m") -> str:
    """A panel's query with the variables' values for "All"."""
    expr = expr.replace("$__rate_interval", rate_interval)
    return re.sub(r"\$(model|engine)\b", ".*", expr)


def rules() -> list[dict[str, Any]]:
    return [
        rule
        for path in RULES
        for group in yaml.safe_load(path.read_text())["groups"]
        for rule in group["rules"]
    ]


def watched(alert: dict[str, Any]) -> tuple[str, str, float]:
    """An alert's series, comparison and threshold."""
    found = re.fullmatch(r"([\w:]+) ([<>]=?) ([\d.e+-]+)", alert["expr"])
    assert found, f"{alert['alert']} compares more than one series with one number"
    return found[1], found[2], float(found[3])
