"""Where a stream stands in its segment, and what that means for the next step.

::

                     more of the prompt waits
                   ┌──────────────────────────┐
                   ▼                          │
    FEEDING ── its part is computed, nothing in flight ──> DUE ── roll ──> FILLING
                                                            ▲                 │
    FILLING ── the segment is full ──> DRAINING ── nothing is in flight ──────┘
       ▲                                                                      (again)
       └── also where a stream begins whose prompt fits

=============  =====================================  ==========================================
phase          the stream                             tokens that a step may take of it
=============  =====================================  ==========================================
``FILLING``    has room in its segment                all that vLLM would schedule
``FEEDING``    has more prompt than its segment       all but the last: vLLM would sample after it
``DRAINING``   is full, and a step is in flight       none, until what is in flight has arrived
``DUE``        rolls before the next step             what it has room for after that
=============  =====================================  ==========================================

``vllm_sink/segments.py`` says what a rollover is.
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vllm.v1.request import Request


class SegmentPhase(Enum):
    """Where a stream stands; see above."""

    FILLING = "filling"
    FEEDING = "feeding"
    DRAINING = "draining"
    DUE = "due"


def phase_of(request: Request, full: int, prompt_waits: bool, max_step_tokens: int) -> SegmentPhase:
    """The phase of a stream before a step.

    Args:
        request: vLLM's.
        full: length, in bookkeeping tokens, at which a stream rolls.
        prompt_waits: whether a part of its prompt still waits for room.
        max_step_tokens: the maximum of tokens that one step computes.
    """
    uncomputed = request.num_tokens - request.num_computed_tokens
    in_flight = request.num_in_flight_tokens
    if prompt_waits:
        if not in_flight and uncomputed <= max_step_tokens:
            return SegmentPhase.DUE
        return SegmentPhase.FEEDING
    # A prompt that just fits is computed first: its log-probabilities may be wanted, and vLLM's
    # worker counts them by its length.
    if (
        not in_flight
        and request.num_tokens >= full
        and uncomputed <= 1 <= request.num_output_tokens
    ):
        return SegmentPhase.DUE
    length = request.num_tokens + request.num_output_placeholders
    if in_flight and request.num_computed_tokens >= length - 1 >= full - 1:
        return SegmentPhase.DRAINING
    return SegmentPhase.FILLING
