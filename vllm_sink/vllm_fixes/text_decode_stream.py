"""Text of tokens of which only a decoder knows what each adds: all that are not byte-level.

A few tokens are decoded with and without the next one, as tokenizers' ``DecodeStream`` does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from vllm_sink.vllm_fixes.decode_stream import CONTEXT, OPEN, end_of

#: What a decoder writes for bytes that are no UTF-8, or not yet.
MARK = "\ufffd"
#: Tokens that a ``TextDecodeStream`` keeps; it needs ``CONTEXT + OPEN``.
LIMIT = 16


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
        self._pieces = end_of(prompt, read)
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


def _common(a: str, b: str) -> str:
    """What both begin with."""
    if b.startswith(a):
        return a
    return a[: next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), len(b))]
