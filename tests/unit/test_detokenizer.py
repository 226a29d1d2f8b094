"""The text of an answer: at U+FFFD, cut UTF-8 and special tokens, with vLLM's own classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from vllm.v1.engine.detokenizer import IncrementalDetokenizer

from tests.unit.detokenizer_cases import (
    ANSWERS,
    BYTES,
    EOS,
    EXACT,
    MARK,
    MARK_ID,
    OURS,
    PLAIN,
    PROMPTS,
    SIZE,
    SO,
    START,
    UNK,
    A,
    byte_level,
    deltas,
    every,
    in_bytes,
    make,
    text,
    whole,
)
from vllm_sink.vllm_fixes.decode_stream import LOOK_BACK
from vllm_sink.vllm_fixes.detokenizer import (
    FastDetokenizer,
    SlowDetokenizer,
)
from vllm_sink.vllm_fixes.vocabulary import Vocabulary

# --- prompts --------------------------------------------------------------------------------------


BEFORE = {"none": [], "short": [SO], "long": [*PROMPTS] * 40}
#: Not nothing before and no marks: SentencePiece drops the first space of a text, and this is one.
BEFORE_MARKS = [(b, m) for b in BEFORE for m in (0, 1, 3, 4, 8, 300) if m or BEFORE[b]]


@every
@pytest.mark.parametrize(("start", "marks"), BEFORE_MARKS)
@pytest.mark.parametrize("kind", ["token", "bytes", "cut"])
def test_a_prompt_that_ends_in_marks(tokenizer: Any, start: str, marks: int, kind: str) -> None:
    before = BEFORE[start]
    end = {"token": [MARK_ID], "bytes": in_bytes(MARK), "cut": in_bytes("\U0001f600")[:3]}[kind]
    assert text(tokenizer, [*before, *end * marks], A) == " x0 x0"


@every
def test_a_chat_does_not_leak(tokenizer: Any) -> None:
    chat = [START, *PROMPTS, MARK_ID, MARK_ID, MARK_ID, MARK_ID, START]
    assert text(tokenizer, chat, A) == " x0 x0"


@every
@pytest.mark.parametrize("before", [0, 1, 5, 300])
@pytest.mark.parametrize("cut", [1, 2, 3])
def test_a_character_that_the_prompt_left_open(tokenizer: Any, before: int, cut: int) -> None:
    face = in_bytes("\U0001f600")
    prompt = [SO] * before + face[:cut]
    assert text(tokenizer, prompt, [*face[cut:], *A]) == "\U0001f600 x0 x0"
    # Characters in bytes before it, which byte fallback writes as marks while it is open.
    prompt = [SO] * before + in_bytes("中国") + face[:cut]
    assert text(tokenizer, prompt, [*face[cut:], *A]) == "\U0001f600 x0 x0"


@every
@pytest.mark.parametrize("marks", [1, 4, 300])
def test_an_open_character_after_marks(tokenizer: Any, marks: int) -> None:
    face = in_bytes("\U0001f600")
    prompt = [SO, *[MARK_ID] * marks, *face[:2]]
    assert text(tokenizer, prompt, [*face[2:], *A]) == "\U0001f600 x0 x0"


@every
@pytest.mark.parametrize("characters", ["中国人民", "中中\U0001f600", "é" * 30, "\U0001f600" * 9])
def test_a_prompt_of_characters_in_bytes(tokenizer: Any, characters: str) -> None:
    for before in range(9):
        prompt = [*[SO] * before, *in_bytes("é" + characters)]
        for answer in ("0", "中", " x"):
            assert text(tokenizer, prompt, in_bytes(answer)) == answer


@every
def test_special_tokens_at_a_prompts_end(tokenizer: Any) -> None:
    face = in_bytes("\U0001f600")
    prompt = [SO, *face[:2], *[START] * (LOOK_BACK // 2)]
    assert text(tokenizer, prompt, [*face[2:], *A]) == "\U0001f600 x0 x0"


class Long(Sequence[int]):
    """A prompt of which only the end may be looked at."""

    def __len__(self) -> int:
        return 1_000_000

    def __getitem__(self, at: Any) -> Any:
        assert isinstance(at, slice)
        assert at.start is not None
        assert -LOOK_BACK <= at.start < 0
        assert at.stop is None
        return [SO] * -at.start

    def __iter__(self) -> Any:
        raise AssertionError("all of it was read")


@every
def test_only_the_end_of_a_prompt_is_read(tokenizer: Any) -> None:
    assert text(tokenizer, Long(), A) == " x0 x0"


@every
def test_a_prompt_of_embeddings(tokenizer: Any) -> None:
    detokenizer = make(tokenizer, None, embeds=torch.zeros(7, 4))
    detokenizer.update(A, False)
    assert detokenizer.get_next_output_text(True, False).lstrip() == "x0 x0"
    assert detokenizer.num_output_tokens() == 2
    assert detokenizer.output_token_ids == A


# --- answers of marks and special tokens ----------------------------------------------------------


@every
@pytest.mark.parametrize("eos", [False, True])
def test_an_answer_of_marks(tokenizer: Any, eos: bool) -> None:
    told = deltas(tokenizer, [SO], [MARK_ID] * 300, eos=eos)
    assert "".join(told) == MARK * 300
    for step in range(301):
        assert len("".join(told[: step + 1])) >= min(step - 2, 300)
    assert whole(tokenizer, [SO], [MARK_ID] * 300) == MARK * 300


@every
def test_a_character_after_marks(tokenizer: Any) -> None:
    answer = [MARK_ID] * 40 + [ANSWERS[1]] + in_bytes("中") + [MARK_ID] * 3 + [ANSWERS[2]]
    assert text(tokenizer, [SO], answer) == MARK * 40 + " x1中" + MARK * 3 + " x2"


@every
def test_what_is_held_is_given_out_once(tokenizer: Any) -> None:
    for delta in (True, False):
        detokenizer = make(tokenizer, [SO])
        detokenizer.update([ANSWERS[0], BYTES + 0xE4], False)
        told = [detokenizer.get_next_output_text(finished, delta) for finished in (0, 1, 1)]
        assert told == ([" x0", MARK, ""] if delta else [" x0", " x0" + MARK, " x0" + MARK])


@every
def test_skipped_tokens(tokenizer: Any) -> None:
    answer = [ANSWERS[0], *[EOS] * 200, *in_bytes("中")[:2], *[EOS] * 30, *in_bytes("中")[2:], SO]
    assert text(tokenizer, [SO], answer) == " x0中 so"


@every
def test_special_tokens_that_are_wanted(tokenizer: Any) -> None:
    told = deltas(tokenizer, [SO], [START, *A, START], skip_special_tokens=False)
    assert [t.strip() for t in told] == ["<|im_start|>", "x0", "x0", "<|im_start|>", ""]


@every
@pytest.mark.parametrize("bad", [-1, SIZE + 99, 2**32, 2**70])
def test_ids_that_are_none(tokenizer: Any, bad: int) -> None:
    face = in_bytes("\U0001f600")
    prompt = [SO, bad, face[0], bad]
    answer = [bad, bad, bad, *face[1:3], bad, bad, bad, bad, face[3], bad, *A, bad]
    assert text(tokenizer, prompt, answer) == "\U0001f600 x0 x0"


# --- as vLLM's ------------------------------------------------------------------------------------

AS_VLLM = {
    "plain": {},
    "stop": {"stop": ["x7 x8"]},
    "stop, told": {"stop": ["x7 x8"], "include_stop_str_in_output": True},
    "stop, not yet": {"stop": ["x7 x8"], "min_tokens": 12},
    "special tokens": {"skip_special_tokens": False},
    "special tokens without spaces": {
        "skip_special_tokens": False,
        "spaces_between_special_tokens": False,
    },
}


@every
@pytest.mark.parametrize("params", AS_VLLM.values(), ids=AS_VLLM)
@pytest.mark.parametrize("step", [1, 3])
def test_ordinary_text_is_as_vllms(tokenizer: Any, params: dict[str, Any], step: int) -> None:
    answer = [*ANSWERS[5:10], START, EOS, START, *ANSWERS[5:12], *in_bytes("é"), *ANSWERS[20:30]]
    ours, theirs = (
        make(tokenizer, [SO, *PROMPTS], build=build, **params) for build in (OURS, PLAIN)
    )
    for at in range(0, len(answer), step):
        tokens = answer[at : at + step]
        found = ours.update(list(tokens), False)
        assert found == theirs.update(list(tokens), False)
        finished = found is not None or at + step >= len(answer)
        for delta in (True, False):
            told = ours.get_next_output_text(finished, delta)
            assert told == theirs.get_next_output_text(finished, delta)
        assert ours.num_output_tokens() == theirs.num_output_tokens()
        assert ours.output_token_ids == theirs.output_token_ids
        if finished:
            break


@every
def test_a_stop_string_cuts_what_is_held_too(tokenizer: Any) -> None:
    detokenizer = make(tokenizer, [SO], stop=["x1"])
    assert detokenizer.update([ANSWERS[0], ANSWERS[1], BYTES + 0xE4], False) == "x1"
    assert detokenizer.get_next_output_text(True, True) == " x0 "


def test_vllm_chooses() -> None:
    assert type(make(None, [1])) is IncrementalDetokenizer
    assert isinstance(make(EXACT["byte level"], [1]), FastDetokenizer)
    assert isinstance(make(EXACT["slow"], [1]), SlowDetokenizer)


def test_special_tokens_are_listed_once() -> None:
    tokenizer = byte_level()
    first, second = (make(tokenizer, [SO]) for _ in range(2))
    assert Vocabulary.of(first.tokenizer) is Vocabulary.of(second.tokenizer)
    assert Vocabulary.of(first.tokenizer).special == {UNK, EOS, START}
