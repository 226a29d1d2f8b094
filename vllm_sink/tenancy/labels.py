"""A bounded ``tenant`` label: the first few names get one each, the rest share ``other``."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

#: The label of all tenants past the cap.
OTHER = "other"

#: The label of requests that name no tenant.
NONE = "none"

#: Hexadecimal digits of a label that hides its name.
_DIGITS = 12


def hashed(name: str) -> str:
    """The label of a tenant whose name is not shown: ``printf %s NAME | sha256sum | cut -c1-12``.

    It hides a name from readers of graphs, but not from those who can guess it.
    """
    return hashlib.sha256(name.encode()).hexdigest()[:_DIGITS]


class Labels:
    """Labels of one engine.

    A name keeps its label for as long as the server runs: one that came and went must not make
    room for another, or the series would grow without bound after all.

    Args:
        max_labels: names that get a label of their own.
        plain: labels are the names themselves.
    """

    def __init__(self, max_labels: int, plain: bool) -> None:
        self._max_labels = max_labels
        self._plain = plain
        self._labels: dict[str, str] = {}

    def of(self, name: str | None) -> str:
        """The label of a tenant."""
        if not name:
            return NONE
        if name in (OTHER, NONE):
            return name
        if name not in self._labels:
            if len(self._labels) >= self._max_labels:
                return OTHER
            self._labels[name] = name if self._plain else hashed(name)
        return self._labels[name]

    def __iter__(self) -> Iterator[str]:
        """Every label in use, and the shared ones."""
        yield from self._labels.values()
        yield from (OTHER, NONE)
