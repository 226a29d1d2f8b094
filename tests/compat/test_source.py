"""A class's attributes, from its source: nothing that only looks like one."""

from __future__ import annotations

from pathlib import Path

import pytest

from vllm_sink.compat.source import Source

CLASS = """
from typing import NamedTuple

class Base:
    def __init__(self, other):
        self.inherited = 0

class Thing(Base):
    level = 1
    field: int
    if True:
        guarded: int = 0
    one, (two, *three) = 1, (2, 3)

    def __init__(this, other, self):
        this.plain = local = 1
        this.annotated: int = 2
        this.a, (this.b, *this.c) = 3, (4, 5)
        with open("f") as this.file, open("g") as handle:
            pass
        for this.item in ():
            if local:
                this.nested = 6
        self.of_a_parameter = 7
        other.of_another = this.there.below = 8
        this.only_annotated: int
        this.raised += 1
        this.table["key"] = 9

        def captures():
            this.captured = 10
            inner = 11

        def shadows(this):
            this.shadowed = 12

        class Inner:
            def __init__(this):
                this.inside = 13

    @property
    def shown(self):
        return local_only

    @classmethod
    def make(cls):
        cls.made = 14
        made_here = cls()
        made_here.set_outside = 15
        return made_here

    @staticmethod
    def helper(self):
        self.static = 16

    async def later(self):
        self.awaited = 17
        running = 18
"""

THERE = """
    inherited level field guarded one two three plain annotated a b c file item nested captured
    shown make made helper later awaited
"""
NOT_THERE = """
    local handle of_a_parameter of_another below there only_annotated raised table inner shadowed
    inside static running made_here set_outside captures shadows Inner this nowhere
"""


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Source:
    root = tmp_path_factory.mktemp("sources") / "package"
    root.mkdir()
    (root / "thing.py").write_text(CLASS)
    return Source(root)


@pytest.mark.parametrize("name", THERE.split())
def test_an_attribute_is_seen(name: str, source: Source) -> None:
    assert source.attribute("package.thing", f"Thing.{name}") == Path("package/thing.py")


@pytest.mark.parametrize("name", NOT_THERE.split())
def test_a_variable_and_another_objects_attribute_are_not(name: str, source: Source) -> None:
    assert source.attribute("package.thing", f"Thing.{name}") is None


def test_a_name_that_is_made_on_demand(tmp_path: Path) -> None:
    """That a module reads a name is no proof that importing it from there works."""
    (root := tmp_path / "package").mkdir()
    (root / "lazy.py").write_text(
        "from typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n    DECLARED: str = ''\n"
        "def __getattr__(name): ...\n"
    )
    source = Source(root)
    assert source.has("package.lazy", "ANYTHING")
    assert not source.has("package.lazy", "ANYTHING", on_demand=False)
    assert source.has("package.lazy", "DECLARED", on_demand=False)
