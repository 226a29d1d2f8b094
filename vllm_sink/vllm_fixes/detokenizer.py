"""Text of tokens as they come: exact at U+FFFD and special tokens, and as cheap later as at first.

vLLM's detokenizers (``v1/engine/detokenizer.py``) give out no text while it ends in U+FFFD, which
may be a UTF-8 sequence that the next token completes, and decode everything since they last did:
an answer of U+FFFD stays empty, a prompt that ends in U+FFFD is repeated in the answer, and skipped
special tokens pile up, each step reading all of them again. Tokenizers' ``DecodeStream`` also turns
a whole prompt into text at the first token of the answer, in the event loop.

Here two decode streams give out text, from the tokens of an answer and the last ones of its prompt:

- ``ByteDecodeStream``, for a byte-level tokenizer (Llama 3, Qwen, GPT-2). A token is bytes whatever
  stands beside it, so the tokens' bytes are decoded as UTF-8; at most three are held.
- ``TextDecodeStream``, for every other. Only a decoder knows what a token adds, so a few tokens are
  decoded with and without it, as ``DecodeStream`` does.

Both hold text for three more tokens at most, each of which is a byte or more: a UTF-8 sequence has
at most four. What they still hold when the answer ends is given out then.
"""

from __future__ import annotations

import codecs
import copy
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import Any, Protocol, TypeVar

from tokenizers import decoders
from typing_extensions import override
from vllm.tokenizers.detokenizer_utils import _convert_tokens_to_string_with_added_encoders
from vllm.v1.engine.detokenizer import (
    BaseIncrementalDetokenizer,
    FastIncrementalDetokenizer,
    SlowIncrementalDetokenizer,
)

#: What a decoder writes for bytes that are no UTF-8, or not yet.
MARK = "\ufffd"
#: Tokens after which a UTF-8 sequence is complete, or will never be.
OPEN = 3
#: Tokens of a prompt, or of what has been given out, that decide how the next one is written.
CONTEXT = 8
#: Tokens at the end of a prompt among which those are looked for; skipped ones do not count.
LOOK_BACK = 64
#: Tokens that a ``TextDecodeStream`` keeps; it needs ``CONTEXT + OPEN``.
LIMIT = 16
#: Tokens whose bytes or text are remembered for a tokenizer, about 2 MB.
REMEMBERED = 8192

_Piece = TypeVar("_Piece")


class DecodeStream(Protocol):
    """Text of an answer, token by token."""

    def step(self, token: int) -> str:
        """The text that a token id makes certain; empty if none."""

    def flush(self) -> str:
        """The text that was held, when no token follows."""


def _end_of(prompt: Sequence[int], read: Callable[[int], _Piece | None]) -> list[_Piece]:
    """The last ``CONTEXT`` tokens that ``read`` does not skip."""
    pieces: list[_Piece] = []
    for token in reversed(prompt[-LOOK_BACK:]):
        piece = read(int(token))
        if piece is not None:
            pieces.append(piece)
            if len(pieces) == CONTEXT:
                break
    return pieces[::-1]


def _common(a: str, b: str) -> str:
    """What both begin with."""
    if b.startswith(a):
        return a
    return a[: next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), len(b))]


class ByteDecodeStream:
    """Text of tokens that are bytes.

    Equal to what decoding prompt and answer together adds to the prompt's own text.

    Args:
        read: a token id's bytes; None to skip it.
        prompt: token ids before the answer.
    """

    def __init__(self, read: Callable[[int], bytes | None], prompt: Sequence[int]) -> None:
        self._read = read
        data = b"".join(_end_of(prompt, read))
        _, used = codecs.utf_8_decode(data, "replace", False)
        #: A UTF-8 sequence without its end.
        self._open = data[used:]
        #: What the prompt's text already shows for it.
        self._shown = self._open.decode("utf-8", "replace")

    def step(self, token: int) -> str:
        data = self._read(token)
        return "" if data is None else self._text(data, False)

    def flush(self) -> str:
        return self._text(b"", True)

    def _text(self, data: bytes, final: bool) -> str:
        if self._open:
            data = self._open + data
        text, used = codecs.utf_8_decode(data, "replace", final)
        self._open = data[used:]
        if self._shown and text:
            text = text.removeprefix(self._shown)
            self._shown = ""
        return text


class TextDecodeStream:
    """Text of tokens by what a decoder writes for a few of them.

    ``pieces`` are what is decoded: ``[0, context)`` are the prompt's, or were given out last; what
    ``[context, ...)`` add may be held. ``known`` is the part of their text that was given out or is
    the prompt's.

    Args:
        read: what stands for a token id in ``pieces``; None to skip it.
        decode: the text of pieces.
        alone: the text of one, which is asked for at nearly every step.
        prompt: token ids before the answer.
    """

    def __init__(
        self,
        read: Callable[[int], Any],
        decode: Callable[[list[Any]], str],
        alone: Callable[[Any], str | None],
        prompt: Sequence[int],
    ) -> None:
        self._read, self._decode, self._alone = read, decode, alone
        self._pieces = _end_of(prompt, read)
        self._begin()
        self._known = self._text = decode(self._pieces) if self._pieces else ""
        self._context = len(self._pieces)

    def _begin(self) -> None:
        """Begin between characters, and with the open one alone if the prompt ends in one.

        Byte fallback writes marks for all characters in bytes that stand beside part of one, which
        the first pieces may be, and writes the characters once an open one is complete.
        """
        for tail in range(min(OPEN, len(self._pieces)) + 1):
            end = len(self._pieces) - tail
            for first in range(OPEN + 1):
                before = self._pieces[first:end]
                if not self._decode(before).endswith(MARK) if before else not first:
                    self._pieces = self._pieces[end:] if tail else before
                    return

    def step(self, token: int) -> str:
        piece = self._read(token)
        if piece is None:
            return ""
        pieces, before, known = self._pieces, self._text, self._known
        pieces.append(piece)
        text = self._text = self._decode(pieces)
        if not text.startswith(known):
            said = self._realign(before)
        elif self._context == len(pieces) - 1 and text != known and text[-1] != MARK:
            # Nearly every token, so without a call: nothing was held, and it becomes the context.
            self._pieces, self._context = [piece], 1
            self._known = self._text = self._alone(piece) or ""
            return text[len(known) :]
        else:
            said = ""
        if self._text.endswith(MARK):
            said += self._settled()
        elif len(self._text) > len(self._known):
            said += self._text[len(self._known) :]
            self._move()
            return said
        if len(self._pieces) > LIMIT:
            said += self._shorten()
        return said

    def flush(self) -> str:
        said = self._text[len(self._known) :]
        self._known = self._text
        return said

    def _move(self) -> None:
        """All text is given out: what was held becomes the context."""
        gone = max(self._context, len(self._pieces) - CONTEXT)
        del self._pieces[:gone]
        self._context = len(self._pieces)
        if gone:
            self._text = self._decode(self._pieces)
        self._known = self._text

    def _realign(self, before: str) -> str:
        """The last piece has changed known text; what was held of ``before``, if it is left so."""
        settled = self._known.rstrip(MARK)
        if settled != self._known and self._text.startswith(settled):
            # It completes a sequence. That stays together, or what follows is read from its middle.
            self._known = _common(self._known, self._text)
            self._context = 0
            return ""
        # Byte fallback: one byte that is no UTF-8 makes marks of all characters in bytes before it.
        held = before[len(self._known) :]
        del self._pieces[:-1]
        self._context, self._known = 0, ""
        self._text = self._alone(self._pieces[0]) or ""
        return held

    def _settled(self) -> str:
        """What no further token can change of a text that ends in a mark."""
        old = len(self._pieces) - OPEN
        if old <= self._context:
            return ""
        settled = _common(self._decode(self._pieces[:old]), self._text)
        said = settled[len(self._known) :]
        if said:
            self._known = settled
        return said

    def _shorten(self) -> str:
        """Drop pieces between the context and the last ones; what was held, if they cannot stay."""
        held = self._text[len(self._known) :]
        shorter = self._pieces[: self._context] + self._pieces[-OPEN:]
        text = self._decode(shorter)
        if text.endswith(held):
            self._pieces, self._text = shorter, text
            self._known = text[: len(text) - len(held)]
            return ""
        if len(self._pieces) < 2 * LIMIT:
            return ""  # the next token may stand better
        del self._pieces[:-1]
        self._context = 1
        self._known = self._text = self._alone(self._pieces[0]) or ""
        return held


#: GPT-2's characters for bytes: printable ones stand for themselves, the others for U+0100 and up.
_PRINTABLE = (*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100))
_OTHERS = (byte for byte in range(0x100) if byte not in _PRINTABLE)
_BYTE_OF = {chr(byte): byte for byte in _PRINTABLE} | {
    chr(0x100 + i): byte for i, byte in enumerate(_OTHERS)
}


class Vocabulary:
    """What is asked of a fast tokenizer for each token; one is made for each tokenizer.

    Args:
        backend: a ``tokenizers.Tokenizer``, or what stands for one.

    Attributes:
        byte_level: each of its tokens is bytes.
        special: ids that ``skip_special_tokens`` skips.
        spelled: a token id's bytes if ``byte_level``; None for an id that is none.
        alone: the text of one token id; None for an id that is none.
    """

    def __init__(self, backend: Any) -> None:
        self._backend = backend
        self._decode: Callable[[list[int]], str] = partial(
            backend.decode, skip_special_tokens=False
        )
        self.byte_level = isinstance(getattr(backend, "decoder", None), decoders.ByteLevel)
        added = backend.get_added_tokens_decoder()
        self.special = frozenset(token for token, it in added.items() if it.special)
        self.spelled = lru_cache(REMEMBERED)(self._spelled)
        self.alone = lru_cache(REMEMBERED)(self._alone)

    @classmethod
    def of(cls, backend: Any) -> Vocabulary:
        """The one of this tokenizer, kept with it, as vLLM keeps ``added_token_ids``."""
        found = getattr(backend, "sink_vocabulary", None)
        if found is None or found._backend is not backend:
            found = backend.sink_vocabulary = cls(backend)
        return found

    def _name(self, token: int) -> str | None:
        try:
            return self._backend.id_to_token(token)
        except (OverflowError, TypeError):  # negative, huge, or no number
            return None

    def _alone(self, token: int) -> str | None:
        return None if self._name(token) is None else self._decode([token])

    def _spelled(self, token: int) -> bytes | None:
        name = self._name(token)
        if name is None:
            return None
        try:
            return bytes([_BYTE_OF[character] for character in name])
        except KeyError:  # an added token, of characters that stand for no byte
            return name.encode()

    def stream(self, prompt: Sequence[int], skip_special_tokens: bool) -> DecodeStream:
        """The text after a prompt."""
        skipped = self.special if skip_special_tokens else frozenset()
        if self.byte_level:
            spelled = self.spelled
            return ByteDecodeStream(lambda t: None if t in skipped else spelled(t), prompt)
        alone = self.alone
        read = lambda t: None if t in skipped or alone(t) is None else t  # noqa: E731
        return TextDecodeStream(read, self._decode, alone, prompt)


class WithDecodeStream(BaseIncrementalDetokenizer):
    """Gives out what its ``stream`` holds when an answer ends."""

    stream: DecodeStream
    _stopped = False

    @override
    def update(self, new_token_ids: list[int], stop_terminated: bool) -> str | None:
        stop: str | None = super().update(new_token_ids, stop_terminated)
        self._stopped = self._stopped or stop is not None
        return stop

    @override
    def get_next_output_text(self, finished: bool, delta: bool) -> str:
        if finished and not self._stopped:  # a stop string has cut the text before what is held
            self.output_text += self.stream.flush()
        text: str = super().get_next_output_text(finished, delta)
        return text


class FastDetokenizer(WithDecodeStream, FastIncrementalDetokenizer):
    """vLLM's for tokenizers of the tokenizers library, with a stream of this module."""

    @override
    def __init__(self, tokenizer: Any, request: Any) -> None:
        super().__init__(tokenizer, _without_prompt(request))
        vocabulary = Vocabulary.of(self.tokenizer)
        self.stream = vocabulary.stream(request.prompt_token_ids or (), self.skip_special_tokens)

    @override
    def _protected_step(self, next_token_id: int) -> str | None:
        return self.stream.step(next_token_id)


class SlowDetokenizer(WithDecodeStream, SlowIncrementalDetokenizer):
    """vLLM's for every other tokenizer, with a stream of this module.

    It holds no token of the prompt, so ``prompt_len`` is 0.
    """

    @override
    def __init__(self, tokenizer: Any, request: Any) -> None:
        super().__init__(tokenizer, _without_prompt(request))
        self._size = len(tokenizer)
        prompt = request.prompt_token_ids or ()
        self.stream = TextDecodeStream(
            self._read, self._decode, lambda n: self._decode([n]), prompt
        )

    @override
    def decode_next(self, next_token_id: int) -> str:
        return self.stream.step(next_token_id)

    def _read(self, token: int) -> str | None:
        if not 0 <= token < self._size:
            return None
        names = self.tokenizer.convert_ids_to_tokens(
            [token], skip_special_tokens=self.skip_special_tokens
        )
        return (names[0] or None) if names else None

    def _decode(self, names: list[str]) -> str:
        """As ``detokenize_incrementally`` (``vllm/tokenizers/detokenizer_utils.py``) does."""
        tokenizer = self.tokenizer
        if tokenizer.is_fast or not tokenizer.get_added_vocab():
            return tokenizer.convert_tokens_to_string(names)
        return _convert_tokens_to_string_with_added_encoders(
            tokenizer,
            names,
            skip_special_tokens=self.skip_special_tokens,
            spaces_between_special_tokens=self.spaces_between_special_tokens,
        )


def _without_prompt(request: Any) -> Any:
    """A request for vLLM's own constructors, which copy or decode the whole prompt."""
    bare = copy.copy(request)
    bare.prompt_token_ids, bare.prompt_embeds = [], None
    return bare


_OURS: dict[type, type] = {
    FastIncrementalDetokenizer: FastDetokenizer,
    SlowIncrementalDetokenizer: SlowDetokenizer,
}


def choose_detokenizer(
    from_new_request: Callable[..., Any], cls: Any, tokenizer: Any, request: Any
) -> Any:
    """``IncrementalDetokenizer.from_new_request`` that makes this module's, as vLLM chooses."""
    theirs = from_new_request(tokenizer, _without_prompt(request))
    ours = _OURS.get(type(theirs))
    if ours is None:  # no detokenization was asked for
        return from_new_request(tokenizer, request)
    return ours(tokenizer, request)
