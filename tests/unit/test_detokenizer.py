"""The text of an answer: at U+FFFD, cut UTF-8 and special tokens, and for ever, with vLLM's own
classes."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models
from transformers import AutoTokenizer, ByT5Tokenizer, PreTrainedTokenizerFast
from vllm.sampling_params import RequestOutputKind, SamplingParams
from vllm.v1.engine.detokenizer import IncrementalDetokenizer

from vllm_sink.streaming import output_trimming
from vllm_sink.vllm_fixes.detokenizer import (
    LIMIT,
    LOOK_BACK,
    ByteDecodeStream,
    FastDetokenizer,
    SlowDetokenizer,
    TextDecodeStream,
    Vocabulary,
    with_decode_streams,
)

MARK = "\ufffd"
SMOLLM = Path(__file__).parents[2] / "models" / "smollm2-135m-instruct"

_FROM_REQUEST = IncrementalDetokenizer.__dict__["from_new_request"].__func__
PLAIN = getattr(_FROM_REQUEST, "__wrapped__", _FROM_REQUEST)
OURS = with_decode_streams(PLAIN)


# --- tokenizers -----------------------------------------------------------------------------------


def _fast(entries: Sequence[str], decoder: Any, **model: Any) -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.BPE({e: i for i, e in enumerate(entries)}, [], **model))
    backend.decoder = decoder
    backend.add_special_tokens([AddedToken(s, special=True, normalized=False) for s in SPECIAL])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="</s>", clean_up_tokenization_spaces=False
    )


#: Token ids, the same in every tokenizer made here.
SPECIAL = ("<unk>", "</s>", "<|im_start|>")
UNK, EOS, START = range(3)
WORDS = 50
MARK_ID = 3
#: "so", then words w0, w1, ... of prompts, then x0, x1, ... of answers; each begins with a space.
SO = 4
PROMPTS = range(5, 5 + WORDS)
ANSWERS = range(5 + WORDS, 5 + 2 * WORDS)
#: The byte b is BYTES + b.
BYTES = 5 + 2 * WORDS
SIZE = BYTES + 256
A = [ANSWERS[0], ANSWERS[0]]


def entries(space: str, mark: str, byte: Callable[[int], str]) -> list[str]:
    words = [f"{space}so", *(f"{space}w{i}" for i in range(WORDS))]
    words += [f"{space}x{i}" for i in range(WORDS)]
    return [*SPECIAL, mark, *words, *(byte(b) for b in range(256))]


def symbol(byte: int) -> str:
    """The character that GPT-2's scheme writes a byte as."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [b for b in range(0x100) if b not in printable]
    return chr(byte) if byte in printable else chr(0x100 + others.index(byte))


def byte_level() -> PreTrainedTokenizerFast:
    mark = "".join(map(symbol, MARK.encode()))
    return _fast(entries("\u0120", mark, symbol), decoders.ByteLevel())


def byte_level_in_sequence() -> PreTrainedTokenizerFast:
    """The same text by the other stream, which does not look into a decoder."""
    mark = "".join(map(symbol, MARK.encode()))
    decoder = decoders.Sequence([decoders.ByteLevel()])
    return _fast(entries("\u0120", mark, symbol), decoder)


def byte_fallback() -> PreTrainedTokenizerFast:
    """As Llama 2's: the text's first space goes; bytes that are not UTF-8 are a mark each."""
    decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return _fast(entries("▁", MARK, "<0x{:02X}>".format), decoder, byte_fallback=True)


class SlowTokenizer:
    """Python alone, as Kimi's: what vLLM's slow detokenizer asks of a tokenizer, and no more.

    Attributes:
        widest: tokens that were decoded together, at most.
    """

    is_fast = False

    def __init__(self) -> None:
        self.names = entries(" ", MARK, "<{}>".format)
        self.widest = 0

    def __len__(self) -> int:
        return SIZE

    def get_added_vocab(self) -> dict[str, int]:
        return {}

    def convert_ids_to_tokens(
        self, ids: Sequence[int], skip_special_tokens: bool = False
    ) -> list[str]:
        return [self.names[i] for i in ids if not (skip_special_tokens and i in (UNK, EOS, START))]

    def convert_tokens_to_string(self, tokens: Sequence[str]) -> str:
        self.widest = max(self.widest, len(tokens))
        parts = [
            bytes([int(t[1:-1])]) if t[0] == "<" and t[1:-1].isdigit() else t.encode()
            for t in tokens
        ]
        return b"".join(parts).decode("utf-8", "replace")

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = False) -> str:
        return self.convert_tokens_to_string(self.convert_ids_to_tokens(ids, skip_special_tokens))


#: Where what is decoded together is the text of all, always.
EXACT = {
    "byte level": byte_level(),
    "byte level, by text": byte_level_in_sequence(),
    "slow": SlowTokenizer(),
}
FALLBACK = byte_fallback()
ALL = {**EXACT, "byte fallback": FALLBACK}

every = pytest.mark.parametrize("tokenizer", ALL.values(), ids=ALL)
exact = pytest.mark.parametrize("tokenizer", EXACT.values(), ids=EXACT)


# --- answers --------------------------------------------------------------------------------------


def make(
    tokenizer: Any, prompt: Any, *, build: Any = None, embeds: Any = None, **params: Any
) -> Any:
    request = SimpleNamespace(
        request_id="1",
        prompt_token_ids=prompt,
        prompt_embeds=embeds,
        sampling_params=SamplingParams(**params),
    )
    return (build or OURS)(IncrementalDetokenizer, tokenizer, request)


def deltas(
    tokenizer: Any, prompt: Any, answer: Iterable[int], *, eos: bool = False, **params: Any
) -> list[str]:
    """The text of each token, and last of the answer's end; ``eos``: by a stop token."""
    detokenizer = make(tokenizer, prompt, **params)
    told = []
    for token in answer:
        detokenizer.update([token], False)
        told.append(detokenizer.get_next_output_text(False, True))
    if eos:
        detokenizer.update([EOS], True)
    told.append(detokenizer.get_next_output_text(True, True))
    return told


def whole(tokenizer: Any, prompt: Any, answer: Sequence[int], **params: Any) -> str:
    """The text in one piece, from several tokens a step."""
    detokenizer = make(tokenizer, prompt, **params)
    for at in range(0, len(answer), 3):
        detokenizer.update(list(answer[at : at + 3]), False)
        detokenizer.get_next_output_text(False, False)
    return detokenizer.get_next_output_text(True, False)


def text(tokenizer: Any, prompt: Sequence[int], answer: Sequence[int]) -> str:
    """Streamed and whole, which are the same."""
    streamed = "".join(deltas(tokenizer, prompt, answer))
    assert streamed == whole(tokenizer, prompt, answer)
    return streamed


def common(a: str, b: str) -> str:
    """What both begin with."""
    length = 0
    while a[length : length + 1] == b[length : length + 1] != "":
        length += 1
    return a[:length]


def added(tokenizer: Any, prompt: Sequence[int], answer: Sequence[int]) -> str:
    """What an answer adds to its prompt's text, by decoding both together."""
    both = tokenizer.decode([*prompt, *answer], skip_special_tokens=True)
    alone = tokenizer.decode(prompt, skip_special_tokens=True)
    return both[len(common(both, alone)) :]


def in_bytes(what: str | bytes) -> list[int]:
    return [BYTES + b for b in (what.encode() if isinstance(what, str) else what)]


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
    # What three more tokens leave as it is has been told by then.
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
    # A word is told within three tokens of its own.
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


# --- for ever -------------------------------------------------------------------------------------

ENDLESS = {
    "marks": [MARK_ID],
    "marks, and seldom a word": [*A, *[MARK_ID] * 14, ANSWERS[0], *[MARK_ID] * 100],
    "skipped": [EOS],
    "continuations": in_bytes(b"\x80"),
    "cut characters": in_bytes(b"\xf0\x9f\x98"),
    "no UTF-8, then characters": in_bytes("\xff".encode("latin-1") + "中".encode()),
    "invalid": [2**40],
    "words": [*ANSWERS],
    "characters": in_bytes("中\U0001f600é"),
    "mixed": [MARK_ID, EOS, *in_bytes(b"\xe4\xb8"), ANSWERS[3], *in_bytes(b"\xad\xff")],
}


def size(stream: Any) -> int:
    """Bytes of a stream's state."""
    total = 0
    for value in vars(stream).values():
        if isinstance(value, (str, bytes, list)):
            total += sys.getsizeof(value)
            total += sum(map(sys.getsizeof, value)) if isinstance(value, list) else 0
    return total


@every
@pytest.mark.parametrize("tokens", ENDLESS.values(), ids=ENDLESS)
def test_nothing_grows(tokenizer: Any, tokens: list[int]) -> None:
    detokenizer = make(tokenizer, [SO])
    stream = detokenizer.stream
    assert isinstance(stream, (ByteDecodeStream, TextDecodeStream))
    most, told = 0, 0
    for step in range(20_000):
        said = detokenizer.decode_next(tokens[step % len(tokens)])
        told += len(said)
        assert len(said) < 4 * LIMIT
        most = max(most, size(stream))
    assert most < 5000
    assert told + len(stream.flush()) <= 20_000 * 4
    if tokens not in ([EOS], [2**40]):
        assert told > 5000


@pytest.mark.parametrize("tokens", ENDLESS.values(), ids=ENDLESS)
def test_few_tokens_are_decoded_together(tokens: list[int]) -> None:
    tokenizer = SlowTokenizer()
    detokenizer = make(tokenizer, [SO] * 5)
    for step in range(500):
        detokenizer.update([tokens[step % len(tokens)]], False)
    assert tokenizer.widest <= LIMIT + 1


def test_a_decoder_that_fits_no_rule() -> None:
    """What it keeps is bounded whatever a decoder writes, and what it gives out goes on."""

    def decode(pieces: list[int]) -> str:
        return "".join(map(str, range(len(pieces)))) + MARK

    stream = TextDecodeStream(lambda t: t, decode, lambda t: decode([t]), [1])
    told = [stream.step(t) for t in range(2000)]
    assert size(stream) < 5000
    assert all(any(told[at : at + 3 * LIMIT]) for at in range(0, 1900, 100))


def test_a_decoder_that_changes_its_text() -> None:
    """What was held of text that a token takes back is given out before it."""

    def decode(pieces: list[str]) -> str:
        return "".join(pieces) if "z" not in pieces else "z" * len(pieces)

    names = ["a", MARK, "z"]
    stream = TextDecodeStream(names.__getitem__, decode, lambda name: decode([name]), [0])
    assert [stream.step(1), stream.step(2), stream.step(0)] == ["", MARK + "z", "z"]


def test_bytes_without_text() -> None:
    """ByT5 writes nothing for bytes that are no UTF-8, where others write a mark."""
    tokenizer = ByT5Tokenizer()
    c3, a9, h = 0xC3 + 3, 0xA9 + 3, ord("h") + 3
    assert text(tokenizer, [h, h, c3], [a9, h]) == "éh"
    assert text(tokenizer, [h], [a9] * 100 + [h, c3, a9, h]) == "héh"
    extra = tokenizer.convert_tokens_to_ids("<extra_id_0>")
    params = {"skip_special_tokens": False, "spaces_between_special_tokens": True}
    told = deltas(tokenizer, [h], [extra, h, c3, a9], **params)
    assert told == [" <extra_id_0>", " h", "", "é", ""]
    assert told == deltas(tokenizer, [h], [extra, h, c3, a9], build=PLAIN, **params)
    detokenizer = make(tokenizer, [h])
    for _ in range(5000):
        detokenizer.update([a9], False)
    assert size(detokenizer.stream) < 5000


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


@every
@pytest.mark.parametrize("tokens", [ENDLESS["marks"], ENDLESS["words"], ENDLESS["mixed"]])
def test_what_was_sent_is_dropped(tokenizer: Any, tokens: list[int]) -> None:
    detokenizer = make(tokenizer, [SO] * 9, stop=["never"])
    state = SimpleNamespace(
        detokenizer=detokenizer,
        output_kind=RequestOutputKind.DELTA,
        stream_interval=1,
        sent_tokens_offset=0,
        logprobs_processor=SimpleNamespace(logprobs=None),
        weight_version_starts=[],
    )
    make_output = output_trimming.with_tail(
        lambda self: self.detokenizer.get_next_output_text(False, True)
    )
    answer = [tokens[i % len(tokens)] for i in range(5000)]
    told = []
    for token in answer:
        detokenizer.update([token], False)
        told.append(make_output(state))
    told.append(detokenizer.get_next_output_text(True, True))
    assert "".join(told) == whole(tokenizer, [SO] * 9, answer)
    assert detokenizer.num_output_tokens() < output_trimming.EVERY
    assert len(detokenizer.token_ids) < output_trimming.EVERY + output_trimming.KEEP


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
