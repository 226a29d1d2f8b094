"""A server's ``/metrics``, parsed."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.parser import text_string_to_metric_families


class Metrics:
    """Samples by name; Ray's names are read as vLLM's: ``ray_vllm_x`` and ``vllm:x`` as ``vllm_x``.

    Args:
        text: in Prometheus's format.
    """

    def __init__(self, text: str) -> None:
        self._samples: dict[str, list[tuple[dict[str, str], float]]] = {}
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                name = sample.name.removeprefix("ray_").replace("vllm:", "vllm_", 1)
                self._samples.setdefault(name, []).append((sample.labels, sample.value))

    def has(self, name: str) -> bool:
        return name in self._samples

    def of(self, name: str, **labels: str) -> Iterator[tuple[dict[str, str], float]]:
        """Samples whose labels include these."""
        for have, value in self._samples.get(name, ()):
            if labels.items() <= have.items():
                yield have, value

    def sum(self, name: str, **labels: str) -> float:
        return sum(value for _, value in self.of(name, **labels))

    def info(self) -> dict[str, str]:
        """The labels of the first engine's ``vllm_sink_info``."""
        return next(labels for labels, _ in self.of("vllm_sink_info"))
