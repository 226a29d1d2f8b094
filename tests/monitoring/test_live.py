"""A real server under load, scraped by a real Prometheus: every query is run.

SmolLM2 on the CPU, a pool for about four streams. Set ``DASHBOARD_PICTURE`` to a file to keep the
panels as drawn at the end (``make dashboard-picture`` writes docs/dashboard.png).
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.servers import serve
from tests.monitoring.definitions import filled, rules, targets, watched
from tests.monitoring.load import short, status, streams
from tests.monitoring.prometheus import Prometheus, prometheus

ROOT = Path(__file__).parents[2]
MODEL = ROOT / "models" / "smollm2-135m-instruct"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.xdist_group("monitoring"),
    pytest.mark.skipif(
        shutil.which("prometheus") is None, reason="no prometheus (Debian: prometheus)"
    ),
    pytest.mark.skipif(not MODEL.is_dir(), reason="no real model: make model"),
]

SINKS, WINDOW, NATIVE = 4, 252, 8192
FLAGS = (
    f"--kv-policy sink --sink-tokens {SINKS} --window-tokens {WINDOW} --served-model-name smollm2 "
    "--enforce-eager --max-num-seqs 16 --max-num-batched-tokens 512 --num-gpu-blocks-override 64 "
    "--sink-tenant-label header:X-Tenant --sink-max-tenants 3 --sink-tenant-names plain"
)
#: Seconds of load; a rate over a minute needs most of one.
LOAD = float(os.environ.get("MONITORING_SECONDS", "75"))


def _tokens(count: int, seed: int) -> list[int]:
    return [100 + (seed * 7919 + i * 31) % 40_000 for i in range(count)]


def _body(prompt: int, output: int, seed: int) -> dict[str, object]:
    return {"model": "smollm2", "prompt": _tokens(prompt, seed), "max_tokens": output}


@pytest.fixture(scope="module")
def observed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """Prometheus, after the load; the server is still there."""
    folder = tmp_path_factory.mktemp("monitoring")
    with (
        serve(MODEL, folder / "log", *FLAGS.split()) as server,
        prometheus(server.url.removeprefix("http://"), folder) as prom,
    ):
        time.sleep(3)  # a rate needs a value from before
        # One past the native context, and three more; then two for which there is no room.
        fits = [("press", _body(NATIVE + 100, 100_000, 0))]
        fits += [(f"desk-{i}", _body(600, 100_000, i)) for i in (1, 2, 3)]
        too_many = [(f"desk-{i}", _body(600, 100_000, i)) for i in (4, 5)]
        with streams(server.url, fits):
            end = time.time() + LOAD
            turn = 0
            while time.time() < end:
                # Each twice, for the prefix cache.
                short(server.url, "short", _body(80, 4, 1000 + turn // 2))
                turn += 1
                time.sleep(0.5)
            assert [status(server.url, *one) for one in too_many] == [429, 429]
            time.sleep(8)
            yield prom


def test_every_panel_has_data(observed: Prometheus) -> None:
    empty = [
        f"{t.panel} / {t.legend}: {t.expr}"
        for t in targets()
        if not observed.finite(filled(t.expr), LOAD + 30)
    ]
    assert not empty, "\n".join(empty)


def test_every_rule_is_evaluated_and_has_data(observed: Prometheus) -> None:
    groups = observed.get("rules")["groups"]
    evaluated = {rule["name"]: rule for group in groups for rule in group["rules"]}
    for rule in rules():
        name = rule.get("record") or rule["alert"]
        assert evaluated[name]["health"] == "ok", evaluated[name]
        series = rule.get("record") or watched(rule)[0]
        assert observed.finite(series, LOAD), f"{name}: {series} has no data"


def test_what_it_says_is_true(observed: Prometheus) -> None:
    """What is known about the load, queried from Prometheus."""

    def most(expr: str) -> float:
        return max(observed.finite(expr, LOAD))

    assert most("vllm_sink_streams_past_context") == 1
    assert 3 <= most("vllm_sink_streams") <= 6
    assert set(observed.finite("sum(vllm_sink_blocks)", LOAD)) <= {63.0}
    assert most("vllm_sink_preemptions_total") == 0
    # The first stream alone evicted its prompt except sinks and window.
    assert most("vllm_sink_tokens_evicted_total") > NATIVE + 100 - SINKS - WINDOW
    assert most('vllm_sink_tenant_streams{tenant="press"}') == 1
    tenants = observed.get("label/tenant/values")
    assert len(tenants) == 3 + 2


def test_an_alert_fires(observed: Prometheus) -> None:
    """The alert for refused streams fires; no stream was preempted."""
    firing = {a["labels"]["alertname"] for a in observed.get("alerts")["alerts"]}
    assert "VllmSinkStreamsRefused" in firing
    assert "VllmSinkStreamsPreempted" not in firing


def test_the_panels_can_be_drawn(observed: Prometheus, tmp_path: Path) -> None:
    out = Path(os.environ.get("DASHBOARD_PICTURE", tmp_path / "dashboard.png"))
    subprocess.run(
        [
            sys.executable,
            ROOT / "docs" / "dashboard_picture.py",
            observed.url,
            out,
            f"--seconds={LOAD:.0f}",
        ],
        check=True,
    )
    assert out.read_bytes().startswith(b"\x89PNG")
    assert out.stat().st_size > 50_000
