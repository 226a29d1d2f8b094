"""Dashboard and rules: well formed, about metrics that exist, and tested by promtool."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.monitoring.definitions import (
    FOLDER,
    RULE_TESTS,
    RULES,
    dashboard,
    panels,
    rules,
    targets,
    watched,
)
from vllm_sink.metrics.definitions import METRICS

needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool is not installed (Debian: prometheus)"
)

EXPRESSIONS = [t.expr for t in targets()] + [r["expr"] for r in rules()]


def _promtool(*arguments: str) -> None:
    told = subprocess.run(
        ["promtool", *arguments], capture_output=True, text=True, check=False, cwd=FOLDER
    )
    assert told.returncode == 0, told.stdout + told.stderr


@needs_promtool
@pytest.mark.parametrize("path", RULES, ids=lambda p: p.name)
def test_rules_are_valid(path: Path) -> None:
    _promtool("check", "rules", str(path))


@needs_promtool
def test_the_scrape_configuration_is_valid() -> None:
    _promtool("check", "config", "prometheus.yml")


@needs_promtool
@pytest.mark.parametrize("path", RULE_TESTS, ids=lambda p: p.name)
def test_rules_do_what_they_say(path: Path) -> None:
    _promtool("test", "rules", str(path))


def test_every_alert_is_tested_and_has_a_runbook() -> None:
    alerts = [r for r in rules() if "alert" in r]
    tests = yaml.safe_load((FOLDER / "rule_tests" / "alerts_test.yml").read_text())["tests"]
    for alert in alerts:
        watched(alert)
        assert len(alert["annotations"]["runbook"]) > 200
        checks = [
            check
            for test in tests
            for check in test["alert_rule_test"]
            if check["alertname"] == alert["alert"]
        ]
        assert [bool(check.get("exp_alerts")) for check in checks] == [False, True, False]
    runbooks = " ".join(alert["annotations"]["runbook"] for alert in alerts)
    named = set(re.findall(r'"([A-Z][^"]+)"', runbooks))
    assert named
    assert named <= {panel["title"] for panel in panels()}, "a panel that is not there"


def _samples() -> set[str]:
    """The names under which this project's metrics are stored."""
    names = set()
    for metric in METRICS.values():
        name = metric.full_name
        if metric.kind == "histogram":
            names |= {name + suffix for suffix in ("_bucket", "_sum", "_count")}
        else:
            names.add(name + "_total" * (metric.kind == "counter"))
    return names


def test_only_metrics_that_exist() -> None:
    asked = set()
    for expr in EXPRESSIONS:
        for pattern in re.findall(r'__name__=~"([^"]+)"', expr):
            if "vllm_sink" in pattern:
                assert pattern.startswith("(ray_)?vllm_sink_")
                asked.add(pattern.removeprefix("(ray_)?"))
            else:
                plain, ray = pattern.split("|")
                assert ray == "ray_" + plain.replace(":", "_")
    assert asked <= _samples()
    stems = {re.sub(r"_(total|bucket|sum|count)$", "", name) for name in asked}
    unused = {m.full_name for m in METRICS.values()} - stems
    assert unused == {"vllm_sink_native_context_tokens"}


def test_recorded_series_are_recorded() -> None:
    recorded = {r["record"] for r in rules() if "record" in r}
    asked = {name for r in rules() for name in re.findall(r"\bvllm_sink:[\w:]+", r["expr"])}
    assert asked
    assert asked <= recorded


def test_panels_do_not_overlap() -> None:
    cells: set[tuple[int, int]] = set()
    for panel in dashboard()["panels"]:
        at = panel["gridPos"]
        x, y = at.get("x", 0), at.get("y", 0)
        mine = {(i, j) for i in range(x, x + at["w"]) for j in range(y, y + at["h"])}
        assert max(i for i, _ in mine) < 24
        assert not cells & mine, panel["title"]
        cells |= mine


def test_variables() -> None:
    variables = [v["name"] for v in dashboard()["templating"]["list"]]
    assert variables == ["datasource", "model", "engine"]
    for panel in panels():
        assert panel["datasource"]["uid"] == "${datasource}"
        for target in panel["targets"]:
            assert 'model_name=~"$model"' in target["expr"]
            assert 'engine=~"$engine"' in target["expr"]


def test_the_dashboard_is_what_its_generator_writes(tmp_path: Path) -> None:
    pytest.importorskip("grafana_foundation_sdk", reason="pip install grafana-foundation-sdk")
    out = tmp_path / "dashboard.json"
    subprocess.run([sys.executable, str(FOLDER / "dashboard.py"), str(out)], check=True)
    assert out.read_text() == (FOLDER / "dashboard.json").read_text()
