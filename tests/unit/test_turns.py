"""The result of ``benchmarks.turns``: a machine that slows down is not the server's age."""

from __future__ import annotations

import pytest

from benchmarks.turns import Turn, summary


def _turns(dearer: float, drift: float) -> list[dict[str, Turn]]:
    """Ten pairs on a machine that becomes slower; the aged side takes ``dearer`` times as long."""
    pairs = []
    for number in range(10):
        slow = drift ** (number / 9)
        sides = {"aged": dearer * slow, "fresh": slow}
        pairs.append(
            {
                name: Turn(tokens=100, seconds=factor, cpu_seconds={"engine": factor / 2})
                for name, factor in sides.items()
            }
        )
    return pairs


@pytest.mark.parametrize("dearer", [1.0, 1.3])
@pytest.mark.parametrize("drift", [1.0, 2.0])
def test_the_ratio_is_the_ages(dearer: float, drift: float) -> None:
    told = summary(_turns(dearer, drift))
    assert told["ratio"] == pytest.approx(dearer)
    assert told["ratio_quartiles"] == pytest.approx([dearer, dearer])
    assert told["cpu_ratio"] == pytest.approx({"engine": dearer})


def test_a_process_that_one_side_lacks_is_left_out() -> None:
    turns = _turns(1.0, 1.0)
    turns[0]["aged"].cpu_seconds["helper"] = 1.0
    assert set(summary(turns)["cpu_ratio"]) == {"engine"}
