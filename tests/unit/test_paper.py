"""The pieces of ``benchmarks.paper`` that need no engine."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import pytest

from benchmarks import engines
from benchmarks.paper import page, recompute, runs, tables
from benchmarks.paper.results import perplexity, sampled
from benchmarks.paper.streameval import make, wilson
from benchmarks.quality import curve


class Letters:
    """A tokenizer of words and single characters: its ids are what it has met, in order."""

    bos_token = None

    def __init__(self) -> None:
        self.known: dict[str, int] = {}

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        pieces: list[str] = []
        for character in text:
            if pieces and character.isalpha() and (pieces[-1] + character)[1:].isalpha():
                pieces[-1] += character
            else:
                pieces.append(character)
        return [self.known.setdefault(piece, len(self.known)) for piece in pieces]


def test_questions_ask_for_lines_as_far_back_as_they_say() -> None:
    tokenizer = Letters()
    stream = make(tokenizer, 4000, 3, [50, 400, 1600], seed=3)
    assert len(stream.questions) > 60
    asked = set()
    for question in stream.questions:
        at = question.prompt_tokens - question.distance
        # The line's own word, the answer that follows the question, the text in front of both.
        assert stream.tokens[at] == question.word == stream.tokens[question.prompt_tokens]
        name = stream.tokens[at - 6 : at]
        assert stream.tokens[question.prompt_tokens - 6 : question.prompt_tokens] == name
        assert abs(question.distance - question.nominal) <= 25 + question.nominal // 10
        assert at not in asked
        asked.add(at)
    assert stream.tokens == make(Letters(), 4000, 3, [50, 400, 1600], seed=3).tokens


def test_samples_lie_evenly_and_within() -> None:
    positions = engines.spread(81_920, 320, 1)
    assert len(set(positions)) == 320
    assert positions[0] >= 1
    assert positions[-1] < 81_920
    steps = {b - a for a, b in itertools.pairwise(positions)}
    assert max(steps) - min(steps) <= 1
    assert engines.spread(4, 10, 1) == [1, 2, 3]


def test_points_of_samples() -> None:
    samples = [[i, -1.0 if i % 2 else -3.0] for i in range(64)]
    points = recompute.points(samples, 32)
    assert [p["nll"] for p in points] == [2.0, 2.0]
    assert points[0]["nll_error"] == pytest.approx(math.sqrt(32 / 31 / 32))
    assert len(recompute.points(samples[:5], 32)) == 1


def test_perplexity_of_a_part() -> None:
    result = {"curve": curve([-1.0] * 512 + [-2.0] * 512, 512), "samples": [[3, -1.0], [9, -3.0]]}
    assert perplexity(result, 1, 513) == pytest.approx(math.exp(1))
    assert perplexity(result, 1, 1025) == pytest.approx(math.exp(1.5))
    assert perplexity(result, 5000, 6000) is None
    assert sampled(result) == pytest.approx(math.exp(2))
    assert sampled(result, {3}) == pytest.approx(math.exp(1))


def test_an_interval_holds_its_share() -> None:
    low, high = wilson(8, 10)
    assert 0 < low < 0.8 < high < 1
    assert wilson(0, 10)[0] == 0.0


def test_the_page_has_a_place_for_every_table() -> None:
    text = (Path(__file__).parents[2] / "docs" / "evidence.md").read_text()
    for name in tables.TABLES:
        assert f"<!-- {name} -->" in text
    empty = page.filled(text, {})
    assert empty.count(tables.ABSENT) == len(tables.TABLES)
    assert page.filled(empty, {}) == empty


def test_every_run_has_a_name_of_its_own() -> None:
    every = [*runs.cpu_runs(), *runs.gpu_runs()]
    assert len({run.name for run in every}) == len(every)
    assert len({run.arguments + run.module for run in every}) == len(every)


def test_a_text_that_is_none_is_named(tmp_path: Path) -> None:
    binary = tmp_path / "binary.txt"
    binary.write_bytes(b"abc\xff")
    with pytest.raises(SystemExit, match="UTF-8 text; byte 3 is not"):
        engines.tokens_up_to(Letters(), binary, 10)
    with pytest.raises(SystemExit, match="a file that can be read"):
        engines.tokens_up_to(Letters(), tmp_path / "none.txt", 10)
    binary.write_text("a b")
    assert len(engines.read_tokens(Letters(), binary, 5, repeat=True)) == 5
    with pytest.raises(SystemExit, match="at most 2"):
        engines.read_tokens(Letters(), binary, 4)
