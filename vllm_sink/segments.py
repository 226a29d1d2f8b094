"""Segments: how an endless stream fits into bookkeeping that ends at ``max_model_len``.

KV is bounded by the policy; vLLM's token lists, block tables and hashes are not, and all of them
end at ``max_model_len``: the *segment*. When a stream has filled one, whole evicted blocks are cut
out of the middle of every list, and the number of tokens that left so far is its *base*::

    bookkeeping   [ sinks )[ evicted ............ )[ window ... now )
    rollover      [ sinks )                        [ window ... now )     base += evicted
    true index    of what follows the sinks: base + bookkeeping index

No key moves or is computed again: keys are rotated to their true index, which does not change.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from vllm_sink.compat.attached import Attached
from vllm_sink.policy import cdiv, sink_blocks

#: Means "until stopped" where vLLM needs a number. Its GPU runner adds it to the length of a prompt
#: in 32 bits, so it must stay well below 2**31.
ENDLESS_TOKENS = 1 << 30

#: Room of a default segment beyond the model's context: the largest prefill chunk that vLLM chooses
#: by itself, so that a prompt does not roll more often than it is scheduled.
CHUNK_ROOM = 16_384

#: On vLLM's ``Request``: the stream's base, the tokens that have left its bookkeeping.
_BASE = Attached("sink_base", 0)


def default_tokens(native_context: int) -> int:
    """The default segment, in which any ``S`` and ``W`` fit."""
    return cdiv(native_context + CHUNK_ROOM, 1024) * 1024


def min_tokens(sink_tokens: int, window_tokens: int, block_size: int) -> int:
    """The smallest segment in which a stream can proceed.

    When it is full, at least one whole block must lie between sinks and window: three blocks beyond
    what is kept, because window, free room and cut each lose up to a block to block boundaries.
    """
    kept = sink_blocks(sink_tokens, block_size) + cdiv(window_tokens, block_size)
    return (kept + 3) * block_size


def full_at(segment_tokens: int, block_size: int) -> int:
    """The length at which a stream rolls, in whole blocks.

    vLLM never gets more at once: the rest of a longer prompt waits. The block that is left free
    takes the tokens in flight when the stream fills up.
    """
    return (segment_tokens // block_size - 1) * block_size


def base_of(request: Any) -> int:
    """How many tokens have left the bookkeeping of vLLM's ``request``."""
    return _BASE.get(request)


def set_base(request: Any, tokens: int) -> None:
    """Set how many tokens have left the bookkeeping of vLLM's ``request``."""
    _BASE.set(request, tokens)


@dataclass(frozen=True)
class Rollover:
    """A stream's bookkeeping from the next step on; the scheduler sends it to the workers.

    Attributes:
        request_id: of the stream.
        base: tokens that have left so far, these included.
        cut: bookkeeping indices ``[first, end)`` that leave now, as they were before.
        fed: tokens of the waiting prompt that are appended.
        tokens: all that remain, ``fed`` included.
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
        bases: of requests that are new to the workers, where not zero.
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
    """Attach rollovers to vLLM's ``SchedulerOutput``, which goes to the workers."""
    _ROLLOVERS.set(scheduler_output, rollovers)
