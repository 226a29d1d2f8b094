"""The two rules of the policy, and nothing else: the only place where they are written.

StreamingLLM (Xiao et al., ICLR 2024, arXiv 2309.17453, section 3.2) for the token at index ``t`` of
a stream with ``S`` sink tokens and a window of ``W`` tokens::

    visible(t)  = {0 .. S-1}  and  {j : t - W < j <= t}
    position    p(t) = min(t, S + W - 1): sinks keep 0 .. S-1, the window follows without a gap
    evicted     e(t) = t - p(t) tokens lie between the sinks and the window

Both depend on ``t`` alone: not on chunk boundaries, batch mates or the block size. ``S`` and ``W``
are a request's own (``StreamPolicy``); the engine has a default of each, and no ``W`` is larger
than the engine's. (The paper's evaluation code with ``start_size = S`` and ``recent_size = R`` is
this policy with ``W = R + 1``: it evicts before it appends.)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class StreamPolicy(NamedTuple):
    """What one stream keeps.

    Attributes:
        sink_tokens: ``S``.
        window_tokens: ``W``, at most the engine's.
    """

    sink_tokens: int
    window_tokens: int

    @property
    def sees_everything_below(self) -> int:
        """A token below this index sees all tokens before it: none is evicted yet."""
        return self.sink_tokens + self.window_tokens


def cache_position(t: int, sink_tokens: int, window_tokens: int) -> int:
    """``p(t)``: where the query of token ``t`` stands inside the cache."""
    return min(t, sink_tokens + window_tokens - 1)


def evicted_tokens(t: int, sink_tokens: int, window_tokens: int) -> int:
    """``e(t)``: how many tokens lie evicted between the sinks and the window of token ``t``."""
    return t - cache_position(t, sink_tokens, window_tokens)


def window_start(t: int, window_tokens: int) -> int:
    """The first index that the window of token ``t`` still holds."""
    return max(0, t - window_tokens + 1)


def cdiv(a: int, b: int) -> int:
    """Ceiling division."""
    return -(-a // b)


def sink_blocks(sink_tokens: int, block_size: int) -> int:
    """Number of leading blocks that a stream pins.

    ::

        [0 .. sink_blocks)              pinned while the stream lives
        [sink_blocks .. window_block)   recycled
        [window_block .. )              the window
    """
    return cdiv(sink_tokens, block_size)


def window_block(computed_tokens: int, window_tokens: int, block_size: int) -> int:
    """The first block that the next token, ``t = computed_tokens``, still reads in its window."""
    return window_start(computed_tokens, window_tokens) // block_size


def max_blocks(
    sink_tokens: int, window_tokens: int, in_flight_tokens: int, total_tokens: int, block_size: int
) -> int:
    """The maximum number of blocks that a stream can hold.

    Args:
        sink_tokens: ``S`` of the request.
        window_tokens: ``W`` of the request.
        in_flight_tokens: maximum of tokens scheduled but not settled; their window is kept whole.
        total_tokens: the stream's maximum length, prompt and output together.
        block_size: tokens in a block.
    """
    span = min(window_tokens - 1 + in_flight_tokens, total_tokens)
    # One more block, because the window may begin anywhere inside its first block.
    windowed = cdiv(span, block_size) + 1 + sink_blocks(sink_tokens, block_size)
    return min(windowed, cdiv(total_tokens, block_size))


def reach(window_tokens: int, layers: int) -> int:
    """How many of a stream's last tokens its next one depends on, besides the sinks.

    A layer looks back ``W - 1`` tokens, and what it finds there has looked back in the one below::

        t - layers * (W - 1)  <- ... <-  t - 2 * (W - 1)  <-  t - (W - 1)  <-  t
    """
    return layers * (window_tokens - 1) + 1


def rebuild(tokens: Sequence[int], sinks: int, window_tokens: int, layers: int) -> list[int]:
    """The tokens of a stream from which it continues elsewhere exactly as it would have here.

    Its sinks, and the tokens within its ``reach``: everything between has no effect. However long
    the stream was, a server that has none of it cached computes no more than these.
    """
    last = reach(window_tokens, layers)
    if len(tokens) <= sinks + last:
        return list(tokens)
    return [*tokens[:sinks], *tokens[-last:]]
