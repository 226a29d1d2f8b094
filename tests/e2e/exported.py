"""What this process would export on ``/metrics``."""

from __future__ import annotations

from prometheus_client import REGISTRY


class Values:
    """What ``/metrics`` would show, and how it changed."""

    def __init__(self) -> None:
        self.samples: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}
        for family in REGISTRY.collect():
            for sample in family.samples:
                if sample.name.startswith("vllm_sink_"):
                    self.samples[sample.name, tuple(sorted(sample.labels.items()))] = sample.value

    def get(self, name: str, **labels: str) -> float:
        labels = {"model_name": "tiny", "engine": "0", **labels}
        return self.samples["vllm_sink_" + name, tuple(sorted(labels.items()))]


def grew(before: Values, name: str, **labels: str) -> float:
    """How much a metric has grown."""
    return Values().get(name, **labels) - before.get(name, **labels)


def forget() -> None:
    """Drop what earlier engines of this process exported."""
    for collector in list(REGISTRY._collector_to_names):
        if getattr(collector, "_name", "").startswith("vllm_sink_"):
            REGISTRY.unregister(collector)
