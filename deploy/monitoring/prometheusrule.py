#!/usr/bin/env python3
"""Writes prometheusrule.yaml, rules/ as Prometheus's operator takes them.

python deploy/monitoring/prometheusrule.py
"""

from __future__ import annotations

from pathlib import Path

import yaml

HERE = Path(__file__).resolve().parent
TARGET = HERE / "prometheusrule.yaml"
HEAD = "# Made from rules/ by prometheusrule.py (make manifests). Change the rules there.\n"


def render() -> str:
    """The resource, as text."""
    groups = [
        group
        for file in sorted((HERE / "rules").glob("*.yml"), reverse=True)  # recording before alerts
        for group in yaml.safe_load(file.read_text(encoding="utf-8"))["groups"]
    ]
    resource = {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {"name": "vllm-sink"},
        "spec": {"groups": groups},
    }
    return HEAD + yaml.safe_dump(resource, sort_keys=False, width=100, allow_unicode=True)


if __name__ == "__main__":
    TARGET.write_text(render(), encoding="utf-8")
