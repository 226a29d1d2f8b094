"""This package's state on vLLM's objects.

Some of it must travel with its object (``SchedulerOutput`` is pickled to the workers), and some
objects are not hashable (dataclasses), so the state is an attribute of the object. Each attribute
has one owner, which defines it as an :class:`Attached`; only the owner reads or writes it.
"""

from __future__ import annotations

from typing import Any, Generic, TypeVar

T = TypeVar("T")


class Attached(Generic[T]):
    """One attribute.

    Args:
        name: of the attribute; begins with ``sink_``.
        default: the value where an object has none; shared, so it must be immutable.
    """

    def __init__(self, name: str, default: T) -> None:
        assert name.startswith("sink_"), name
        self.name = name
        self.default = default

    def get(self, owner: Any) -> T:
        """The object's value."""
        value: T = getattr(owner, self.name, self.default)
        return value

    def set(self, owner: Any, value: T) -> None:
        setattr(owner, self.name, value)
