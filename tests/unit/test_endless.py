"""What ``benchmarks.endless`` reports of memory: leaks, but neither sawtooth nor start-up."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.endless_report import growth, peaks, settled

STREAMS, SEGMENT, POOL = 4, 100, 1000


def _samples(leak: float, rounds: int) -> list[dict[str, Any]]:
    """Lists that fill up by 8 bytes a token between rollovers, every 60 tokens of a stream."""
    samples = []
    for each in range(0, 60 * rounds, 7):
        tokens, since = STREAMS * each, each if each < 90 else 30 + (each - 90) % 60
        registry = 100 * min(tokens, POOL)
        held = 5_000_000 + registry + 8 * STREAMS * since + leak * tokens
        samples.append(
            {
                "tokens": tokens,
                "shortest": each,
                "rollovers": 0 if each < 90 else STREAMS * (1 + (each - 90) // 60),
                "memory": {"engine": round(held), "front": 1},
            }
        )
    return samples


@pytest.mark.parametrize("leak", [0.0, 2.0])
def test_a_leak_is_told_and_a_sawtooth_is_not(leak: float) -> None:
    steady = settled(_samples(leak, 60), SEGMENT, POOL)
    assert steady[0]["tokens"] >= POOL
    told = growth(peaks(steady, STREAMS))
    assert told["engine"]["bytes_per_token"] == pytest.approx(leak, abs=0.1)
    assert told["engine"]["bytes_per_token_second_half"] == pytest.approx(leak, abs=0.2)
    assert told["front"]["bytes_per_token"] == 0


@pytest.mark.parametrize("rounds", [1, 2, 5])
def test_too_short_is_said(rounds: int) -> None:
    assert growth(peaks(settled(_samples(2.0, rounds), SEGMENT, POOL), STREAMS)) == {}
