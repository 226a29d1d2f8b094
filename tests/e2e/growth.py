"""What a process holds: every reachable object, with its size and its owner.

Counted object by object, because resident memory changes in steps of a megabyte and includes what
an allocator keeps for later, and ``tracemalloc`` makes each step of an engine four times as slow.
"""

from __future__ import annotations

import gc
import sys
import types
from collections import Counter
from collections.abc import Sequence
from typing import Any, ClassVar

import torch


class Held:
    """All that is reachable now, but for earlier counts and for code, most of all objects.

    Args:
        besides: data that is left out, and all data in it.

    Attributes:
        sizes: bytes of each object, by id.
        owners: of each object, the id of one that refers to it.
        kinds: types, by id.
    """

    _all: ClassVar[list[Held]] = []

    def __init__(self, besides: Sequence[Any] = ()) -> None:
        gc.collect()
        self._all.append(self)
        self.sizes: dict[int, int] = {}
        self.owners: dict[int, int] = {}
        self.kinds: dict[int, type] = {}
        # vLLM freezes what it made at start-up, which hides that from get_objects.
        todo = [gc.get_objects(), list(sys._current_frames().values()), list(sys.modules.values())]
        mine = {id(part) for part in (sys._getframe(), todo, *todo)} | _data(besides)
        for held in self._all:
            mine |= {id(part) for part in (held, vars(held), *vars(held).values())}
        while todo:
            owner = todo.pop()
            for one in gc.get_referents(owner):
                key = id(one)
                if type(one) is not types.CodeType and key not in self.sizes and key not in mine:
                    self.sizes[key] = _size(one)
                    self.owners[key] = id(owner)
                    self.kinds[key] = type(one)
                    todo.append(one)

    @property
    def total(self) -> int:
        return sum(self.sizes.values())

    def grown_since(self, before: Held, most: int = 8) -> str:
        """Where most bytes came in: types, and who refers to them."""
        gains: Counter[str] = Counter()
        for key, size in self.sizes.items():
            same = self.kinds[key] is before.kinds.get(key)
            if gain := size - (before.sizes[key] if same else 0):
                gains[self._path(key)] += gain
        for key, size in before.sizes.items():
            if self.kinds.get(key) is not before.kinds[key]:
                gains[before._path(key)] -= size
        found = sorted(gains.items(), key=lambda item: -abs(item[1]))[:most]
        return "\n".join(f"{size:+9d}  {path}" for path, size in found)

    def _path(self, key: int) -> str:
        names = []
        while key in self.kinds and len(names) < 6:
            names.append(self.kinds[key].__name__)
            key = self.owners[key]
        return " in ".join(names)


def _data(roots: Sequence[Any]) -> set[int]:
    """Ids of these objects and of all that they contain, except types."""
    found = {id(roots)}
    todo = list(roots)
    while todo:
        one = todo.pop()
        if id(one) not in found and not isinstance(one, type):
            found.add(id(one))
            todo += gc.get_referents(one)
    return found


def _size(one: Any) -> int:
    """Bytes of one object; of a table, what its entries need: its capacity varies."""
    kind = type(one)
    if kind is list:
        return 56 + 8 * len(one)
    if kind is dict or kind is set:
        return 64 + 32 * len(one)
    if kind is torch.Tensor:
        return sys.getsizeof(one) + int(one.nelement() * one.element_size())
    return sys.getsizeof(one)
