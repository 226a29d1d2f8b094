"""A bounded ``tenant`` label: the first few names get one each, the rest share ``other``."""

from __future__ import annotations

from vllm_sink.metrics.stats import StreamStats, TenantStats

#: The label of all tenants past the cap.
OTHER = "other"

#: The label of requests that name no tenant.
NONE = "none"

#: Longer names are cut: a label's value is kept in memory for as long as the server lives.
MAX_LENGTH = 64


class Tenants:
    """Labels of one engine.

    A name keeps its label for as long as the server runs: one that came and went must not make
    room for another, or the series would grow without bound after all.

    Args:
        most: names that get a label of their own.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._names: set[str] = set()

    def label(self, name: str | None) -> str:
        """The label of a tenant."""
        if not name:
            return NONE
        name = name[:MAX_LENGTH]
        if name in (OTHER, NONE) or name in self._names:
            return name
        if len(self._names) >= self._most:
            return OTHER
        self._names.add(name)
        return name

    def level(self, stats: StreamStats) -> None:
        """Put every label in a message, so that a tenant that went away is shown as 0."""
        for name in (*self._names, OTHER, NONE):
            stats.tenants.setdefault(name, TenantStats())

    @staticmethod
    def count(stats: StreamStats, label: str, computed: int, evicted: int) -> None:
        """Add what a stream of this tenant did."""
        tenant = stats.tenants.setdefault(label, TenantStats())
        tenant.computed_tokens += computed
        tenant.evicted_tokens += evicted
