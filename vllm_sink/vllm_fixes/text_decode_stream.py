"""Text of tokens that only a decoder can turn into text: all that are not byte-level.

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
        read: the piece for a token id; None to skip it.
        decode: the text of pieces.
        alone: the text of one piece, which is needed at nearly every step.
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

        Byte fallback writes marks for all byte tokens next to an incomplete character, which the
        first pieces may be part of, and writes the characters once that one is complete.
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
            new_text = self._realign(before)
        elif self._context == len(pieces) - 1 and text != known and text[-1] != MARK:
            # Nearly every token, so without a call: nothing was held, and it becomes the context.
            self._pieces, self._context = [piece], 1
            self._known = self._text = self._alone(piece) or ""
            return text[len(known) :]
        else:
            new_text = ""
        if self._text.endswith(MARK):
            new_text += self._settled()
        elif len(self._text) > len(self._known):
            new_text += self._text[len(self._known) :]
            self._move()
            return new_text
        if len(self._pieces) > LIMIT:
            new_text += self._shorten()
        return new_text

    def flush(self) -> str:
        held = self._text[len(self._known) :]
        self._known = self._text
        return held

    def _move(self) -> None:
        """All text is given out: what was held becomes the context."""
        num_dropped = max(self._context, len(self._pieces) - CONTEXT)
        del self._pieces[:num_dropped]
        self._context = len(self._pieces)
        if num_dropped:
            self._text = self._decode(self._pieces)
        self._known = self._text

    def _realign(self, before: str) -> str:
        """The last piece has changed known text; return what ``before`` held, if that stays."""
        settled = self._known.rstrip(MARK)
        if settled != self._known and self._text.startswith(settled):
            # It completes a sequence, which stays together: what follows must not start inside it.
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
        """The part of a text ending in a mark that no further token can change."""
        old = len(self._pieces) - OPEN
        if old <= self._context:
            return ""
        settled = _common(self._decode(self._pieces[:old]), self._text)
        new_text = settled[len(self._known) :]
        if new_text:
            self._known = settled
        return new_text

    def _shorten(self) -> str:
        """Drop pieces after the context, but for the last; return what was held if all must go."""
        held = self._text[len(self._known) :]
        shorter = self._pieces[: self._context] + self._pieces[-OPEN:]
        text = self._decode(shorter)
        if text.endswith(held):
            self._pieces, self._text = shorter, text
            self._known = text[: len(text) - len(held)]
            return ""
        if len(self._pieces) < 2 * LIMIT:
            return ""  # it may work after the next token
        del self._pieces[:-1]
        self._context = 1
        self._known = self._text = self._alone(self._pieces[0]) or ""
        return held


def _common(a: str, b: str) -> str:
    """The common prefix."""
    if b.startswith(a):
        return a
    return a[: next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), len(b))]
