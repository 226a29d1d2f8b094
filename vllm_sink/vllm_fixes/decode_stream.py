"""Decode streams: turn the tokens of an answer into text as they come, after those of its prompt.

``ByteDecodeStream`` and ``TextDecodeStream`` hold text back for three more tokens at most, each of
which is a byte or more: a UTF-8 sequence has at most four. What they still hold when the answer
ends is given out then.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

#: Tokens after which a UTF-8 sequence is complete, or will never be.
OPEN = 3
#: Tokens of a prompt, or of the text given out, that decide how the next one is written.
CONTEXT = 8
#: Tokens at the end of a prompt among which those are looked for; skipped ones do not count.
LOOK_BACK = 64

Piece = TypeVar("Piece")


class DecodeStream(Protocol):
    """Text of an answer, token by token."""

    def step(self, token: int) -> str:
        """The text that a token id makes certain; empty if none."""

    def flush(self) -> str:
        """The text that was held, when no token follows."""


def end_of(prompt: Sequence[int], read: Callable[[int], Piece | None]) -> list[Piece]:
    """The last ``CONTEXT`` tokens that ``read`` does not skip."""
    pieces: list[Piece] = []
    for token in reversed(prompt[-LOOK_BACK:]):
        piece = read(int(token))
        if piece is not None:
            pieces.append(piece)
            if len(pieces) == CONTEXT:
                break
    return pieces[::-1]
