"""An endless answer: the text continues, and the kept state does not grow."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import ByT5Tokenizer
from vllm.sampling_params import RequestOutputKind

from tests.unit.detokenizer_cases import (
    ANSWERS,
    EOS,
    MARK,
    MARK_ID,
    PLAIN,
    SO,
    A,
    SlowTokenizer,
    deltas,
    every,
    in_bytes,
    make,
    text,
    whole,
)
from tests.wrapping import wrapped
from vllm_sink.streaming import output_trimming
from vllm_sink.vllm_fixes.byte_decode_stream import ByteDecodeStream
from vllm_sink.vllm_fixes.text_decode_stream import LIMIT, TextDecodeStream

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
    """Its state is bounded whatever a decoder writes, and its output continues."""

    def decode(pieces: list[int]) -> str:
        return "".join(map(str, range(len(pieces)))) + MARK

    stream = TextDecodeStream(lambda t: t, decode, lambda t: decode([t]), [1])
    told = [stream.step(t) for t in range(2000)]
    assert size(stream) < 5000
    assert all(any(told[at : at + 3 * LIMIT]) for at in range(0, 1900, 100))


def test_a_decoder_that_changes_its_text() -> None:
    """Text held back that a token would retract is emitted before it."""

    def decode(pieces: list[str]) -> str:
        return "".join(pieces) if "z" not in pieces else "z" * len(pieces)

    names = ["a", MARK, "z"]
    stream = TextDecodeStream(names.__getitem__, decode, lambda name: decode([name]), [0])
    assert [stream.step(1), stream.step(2), stream.step(0)] == ["", MARK + "z", "z"]


def test_bytes_without_text() -> None:
    """ByT5 writes nothing for invalid UTF-8, where others write a mark."""
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
    make_output = wrapped(
        lambda self: self.detokenizer.get_next_output_text(False, True),
        output_trimming.trim_sent_output,
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
