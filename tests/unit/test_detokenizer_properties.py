"""The text of an answer is what it adds to its prompt, for any tokens: synthetic and a model's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from tests.unit.detokenizer_cases import (
    ANSWERS,
    BYTES,
    EOS,
    FALLBACK,
    MARK,
    MARK_ID,
    SIZE,
    SO,
    START,
    WORDS,
    added,
    byte_level,
    common,
    deltas,
    exact,
    in_bytes,
    text,
    whole,
)
from vllm_sink.vllm_fixes.vocabulary import Vocabulary

SMOLLM = Path(__file__).parents[2] / "models" / "smollm2-135m-instruct"

# --- anything -------------------------------------------------------------------------------------

_characters = st.sampled_from("é中\U0001f600")
_tokens = st.one_of(
    st.sampled_from(ANSWERS).map(lambda t: [t]),
    st.just([MARK_ID]),
    st.sampled_from([EOS, START]).map(lambda t: [t]),
    st.binary(max_size=5).map(in_bytes),
    _characters.map(in_bytes),
    st.tuples(_characters, st.integers(1, 3)).map(lambda c: in_bytes(c[0].encode()[: c[1]])),
    st.tuples(_characters, st.integers(1, 3)).map(lambda c: in_bytes(c[0].encode()[c[1] :])),
)
_answers = st.lists(_tokens, max_size=40).map(lambda parts: [t for part in parts for t in part])
#: The same, with words that no answer has.
_prompts = _answers.map(lambda ts: [t - WORDS if t in ANSWERS else t for t in ts])


@exact
@settings(max_examples=150, deadline=None)
@given(prompt=_prompts, answer=_answers)
def test_an_answer_is_what_it_adds(tokenizer: Any, prompt: list[int], answer: list[int]) -> None:
    wanted = added(tokenizer, prompt, answer)
    told = deltas(tokenizer, prompt, answer)
    assert "".join(told) == wanted
    assert whole(tokenizer, prompt, answer) == wanted
    # Text that three more tokens do not change has been delivered by then.
    seen = [t for t in answer if t not in (EOS, START)]
    told = deltas(tokenizer, prompt, seen)
    for step in range(3, len(seen)):
        certain = common(added(tokenizer, prompt, seen[: step - 2]), wanted)
        assert "".join(told[: step + 1]).startswith(certain)


@settings(max_examples=300, deadline=None)
@given(prompt=_prompts, answer=_answers)
def test_anything_with_byte_fallback(prompt: list[int], answer: list[int]) -> None:
    """Not one text decides it: a byte that is no UTF-8 makes marks of characters before it."""
    prompt = [SO, *prompt]
    told = deltas(FALLBACK, prompt, answer)
    text = "".join(told)
    assert text == whole(FALLBACK, prompt, answer)
    assert "w" not in text.translate(ascii_bytes_of(answer))
    assert "s" not in text.translate(ascii_bytes_of(answer))
    words = [FALLBACK.decode([t]) for t in answer if t in ANSWERS]
    at = 0
    for word in words:
        at = text.index(f" {word}", at) + len(word) + 1
    # A word is delivered within three tokens.
    for step, token in enumerate(answer):
        if token in ANSWERS:
            assert f" {FALLBACK.decode([token])}" in told[step]


def ascii_bytes_of(answer: list[int]) -> dict[int, None]:
    """Characters that an answer has as bytes of its own."""
    return {t - BYTES: None for t in answer if BYTES <= t < BYTES + 0x80}


@settings(max_examples=300, deadline=None)
@given(
    parts=st.lists(
        st.one_of(
            st.sampled_from(ANSWERS).map(lambda t: [t]),
            st.text(st.characters(exclude_characters=MARK, codec="utf-8")).map(in_bytes),
            st.just([MARK_ID]),
            st.just([EOS]),
        )
    ),
    data=st.data(),
)
def test_byte_fallback_of_utf8(parts: list[list[int]], data: Any) -> None:
    """Bytes that are UTF-8, cut anywhere between a prompt and its answer."""
    ends, both = {1}, [SO]  # where no character is open
    for part in parts:
        for token in part:
            if not BYTES + 0x80 <= token < BYTES + 0xC0:  # a character begins
                ends.add(len(both))
            both.append(token)
    ends.add(len(both))
    cut = data.draw(st.integers(1, len(both)))
    settled = max(end for end in ends if end <= cut)
    before = FALLBACK.decode(both[:settled], skip_special_tokens=True)
    wanted = FALLBACK.decode(both, skip_special_tokens=True).removeprefix(before)
    told = text(FALLBACK, both[:cut], both[cut:])
    assert told == wanted


# --- a real vocabulary ----------------------------------------------------------------------------


def test_added_tokens_are_their_bytes() -> None:
    """Also those with characters that stand for no byte, or for another one."""
    tokenizer = byte_level()
    tokenizer.add_tokens(["<tool call>", "日本", "né", "<plain>"])
    backend = tokenizer._tokenizer
    spelled = Vocabulary.of(backend).spelled
    for token in range(SIZE, SIZE + 4):
        alone = backend.decode([token], skip_special_tokens=False)
        assert spelled(token).decode("utf-8", "replace") == alone
        assert alone
    assert spelled(SIZE).decode() == "<tool call>"


@pytest.fixture(scope="module")
def smollm() -> Any:
    if not SMOLLM.is_dir():
        pytest.skip(f"{SMOLLM} is not here")
    return AutoTokenizer.from_pretrained(SMOLLM)


def test_every_token_is_its_bytes(smollm: Any) -> None:
    backend = smollm._tokenizer
    spelled = Vocabulary.of(backend).spelled
    tokens = range(backend.get_vocab_size())
    assert [spelled(t).decode("utf-8", "replace") for t in tokens] == [
        backend.decode([t], skip_special_tokens=False) for t in tokens
    ]


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_any_tokens_of_it(smollm: Any, data: Any) -> None:
    tokens = st.lists(st.one_of(st.integers(0, 49151), st.integers(0, 400), st.just(24211)))
    prompt, answer = data.draw(tokens), data.draw(tokens)
    assert text(smollm, prompt, answer) == added(smollm, prompt, answer)


@pytest.mark.parametrize("marks", [0, 1, 3, 4, 8, 300])
def test_a_rendered_chat(smollm: Any, marks: int) -> None:
    chat = f"<|im_start|>system\nsecret<|im_end|>\n<|im_start|>user\nso {MARK * marks}"
    answer = smollm.encode(" A A")
    assert text(smollm, smollm.encode(chat), answer) == " A A"
    assert text(smollm, [*smollm.encode("so "), *[24211] * marks], answer) == " A A"
