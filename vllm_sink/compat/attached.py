"""State of this package's on objects of vLLM's.

Some of it must travel where the object goes (``SchedulerOutput`` is pickled to the workers), and
some objects can be no key of a dictionary (dataclasses): it is an attribute of the object, and each
has one owner, which defines it as an :class:`Attached` and is the only one to read or write it.
"""

from __future__ import annotations

from typing import Any, Generic, TypeVar

T = TypeVar("T")


class Attached(Generic[T]):
    """One attribute.

    Args:
        name: of the attribute; begins with ``sink_``.
        default: where an object does not have it; shared, so nothing that changes.
    """

    def __init__(self, name: str, default: T) -> None:
        assert name.startswith("sink_"), name
        self.name = name
        self.default = default

    def get(self, owner: Any) -> T:
        """What the object carries."""
        value: T = getattr(owner, self.name, self.default)
        return value

    def set(self, owner: Any, value: T) -> None:
        setattr(owner, self.name, value)
