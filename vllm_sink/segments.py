"""Segments: how an endless stream fits into bookkeeping that ends at ``max_model_len``.

KV is bounded by the policy; vLLM's token lists, block tables and hashes are not, and all of them
end at ``max_model_len``: the *segment*. When a stream has filled one, whole evicted blocks are cut
out of the middle of every list, and the number of tokens that left so far is its *base*::

    bookkeeping   [ sinks )[ evicted ............ )[ window ... now )
    rollover      [ sinks )                        [ window ... now )     base += evicted
    true index    of what follows the sinks: base + bookkeeping index

No key moves and none is computed again: keys stand at their true index, and that has not changed.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from vllm_sink.compat.attached import Attached
from vllm_sink.policy import cdiv, sink_blocks

#: What stands for "until stopped" where vLLM wants a number. Its GPU runner adds it to the length
#: of a prompt in 32 bits, so it may not come near 2**31.
ENDLESS_TOKENS = 1 << 30

#: What a segment holds beyond the model's context unless it is named: the largest prefill chunk
#: that vLLM chooses by itself, so that a prompt does not roll more often than it is scheduled.
CHUNK_ROOM = 16_384

#: On vLLM's ``Request``: the stream's base, the tokens that have left its bookkeeping.
_BASE = Attached("sink_base", 0)


def default_tokens(native_context: int) -> int:
    """The segment of an engine whose user names none: any ``S`` and ``W`` fit."""
    return cdiv(native_context + CHUNK_ROOM, 1024) * 1024


def min_tokens(sink_tokens: int, window_tokens: int, block_size: int) -> int:
    """The smallest segment in which a stream can proceed.

    When it is full, at least one whole block must lie between sinks and window: three blocks more
    than what is kept, for what the window, the room to grow and the cut lose to block boundaries.
    """
    kept = sink_blocks(sink_tokens, block_size) + cdiv(window_tokens, block_size)
    return (kept + 3) * block_size


def full_at(segment_tokens: int, block_size: int) -> int:
    """The length at which a stream rolls, in whole blocks.

    Nothing longer is ever given to vLLM at once: a prompt's rest waits. The block that is left free
    takes what is in flight when the stream gets there.
    """
    return (segment_tokens // block_size - 1) * block_size


def base_of(request: Any) -> int:
    """How many tokens have left the bookkeeping of vLLM's ``request``."""
    return _BASE.get(request)


def set_base(request: Any, tokens: int) -> None:
    """So many tokens have left the bookkeeping of vLLM's ``request``, all in all."""
    _BASE.set(request, tokens)


@dataclass(frozen=True)
class Rollover:
    """A stream's bookkeeping as it is from the coming step on; the scheduler tells the workers.

    Attributes:
        request_id: of the stream.
        base: tokens that have left so far, all in all.
        cut: bookkeeping indices ``[first, end)`` that leave now, as they were before.
        fed: tokens of the prompt that are new, at the end.
        tokens: all that remain, the new ones included.
        num_prompt_tokens: how many of them are prompt.
        num_prompt_cut: how many tokens of the cut were prompt.
        num_computed_tokens: how many of them have keys.
        block_ids: their blocks.
    """

    request_id: str
    base: int
    cut: tuple[int, int]
    fed: list[int]
    tokens: list[int]
    num_prompt_tokens: int
    num_prompt_cut: int
    num_computed_tokens: int
    block_ids: list[int]


@dataclass
class StepRollovers:
    """What the workers must know before a step.

    Attributes:
        rolled: streams that rolled, in order.
        bases: of requests that the workers (again) meet for the first time, where not zero.
    """

    rolled: list[Rollover] = field(default_factory=list)
    bases: dict[str, int] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.rolled or self.bases)


#: On vLLM's ``SchedulerOutput``, which goes to the workers.
_ROLLOVERS: Attached[StepRollovers | None] = Attached("sink_rollovers", None)


def rollovers_of(scheduler_output: Any) -> StepRollovers:
    """The rollovers that vLLM's ``SchedulerOutput`` carries."""
    return _ROLLOVERS.get(scheduler_output) or StepRollovers()


def send_rollovers(scheduler_output: Any, rollovers: StepRollovers) -> None:
    """Let vLLM's ``SchedulerOutput`` carry them to the workers."""
    _ROLLOVERS.set(scheduler_output, rollovers)
