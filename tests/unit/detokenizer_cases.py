"""Tokenizers of every kind with the same token ids, and the text of an answer by each."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast
from vllm.sampling_params import SamplingParams
from vllm.v1.engine.detokenizer import IncrementalDetokenizer

from tests.wrapping import wrapped
from vllm_sink.vllm_fixes.detokenizer import (
    choose_detokenizer,
)

MARK = "\ufffd"

_FROM_REQUEST = IncrementalDetokenizer.__dict__["from_new_request"].__func__
PLAIN = getattr(_FROM_REQUEST, "__wrapped__", _FROM_REQUEST)
OURS = wrapped(PLAIN, choose_detokenizer)


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
        widest: maximum number of tokens decoded together.
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
    """The common prefix."""
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
