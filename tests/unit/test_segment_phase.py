"""Each phase of a stream, and its transitions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from vllm_sink.engine.segment_phase import SegmentPhase, phase_of

FULL, STEP = 64, 16


@dataclass
class Stream:
    """The counts of vLLM's ``Request`` that a phase depends on."""

    num_tokens: int
    num_computed_tokens: int
    num_in_flight_tokens: int = 0
    num_output_placeholders: int = 0
    num_output_tokens: int = 1


def phase(prompt_waits: bool = False, **counts: Any) -> SegmentPhase:
    return phase_of(Stream(**counts), FULL, prompt_waits, STEP)  # type: ignore[arg-type]


@pytest.mark.parametrize("tokens", [1, FULL - 1])
def test_a_stream_with_room_fills_its_segment(tokens: int) -> None:
    assert phase(num_tokens=tokens, num_computed_tokens=tokens - 1) is SegmentPhase.FILLING


def test_a_full_stream_drains_and_then_rolls() -> None:
    """Scheduled one step ahead: a placeholder stands for the token that is being computed."""
    ahead = {"num_in_flight_tokens": 1, "num_output_placeholders": 1}
    assert phase(num_tokens=FULL - 1, num_computed_tokens=FULL - 1, **ahead) is (
        SegmentPhase.DRAINING
    )
    assert phase(num_tokens=FULL, num_computed_tokens=FULL - 1) is SegmentPhase.DUE
    before = phase(num_tokens=FULL - 2, num_computed_tokens=FULL - 2, **ahead)
    assert before is SegmentPhase.FILLING


def test_a_prompt_that_just_fits_is_computed_first() -> None:
    assert phase(num_tokens=FULL, num_computed_tokens=0, num_output_tokens=0) is (
        SegmentPhase.FILLING
    )
    assert phase(num_tokens=FULL, num_computed_tokens=FULL - 1, num_output_tokens=0) is (
        SegmentPhase.FILLING
    )


def test_a_longer_prompt_is_fed_when_its_part_is_nearly_computed() -> None:
    feeding = {"prompt_waits": True, "num_tokens": FULL, "num_output_tokens": 0}
    assert phase(num_computed_tokens=FULL - STEP - 1, **feeding) is SegmentPhase.FEEDING
    assert phase(num_computed_tokens=FULL - STEP, **feeding) is SegmentPhase.DUE
    in_flight = phase(num_computed_tokens=FULL - STEP, num_in_flight_tokens=1, **feeding)
    assert in_flight is SegmentPhase.FEEDING
