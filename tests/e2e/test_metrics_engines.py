"""Statistics that need an engine of their own."""

from __future__ import annotations

from pathlib import Path

from tests.e2e import streams
from tests.e2e.engines import engine, greedy, prompt, random_tokens, scheduler_of, tiny
from tests.e2e.exported import Values, forget, grew

SINKS, WINDOW = 4, 60


def test_who_waits_in_python_is_not_refused(tiny_folder: Path) -> None:
    """A pool for one stream: the second waits many steps, then runs."""
    with engine(
        tiny("llama-gqa", tiny_folder),
        WINDOW,
        SINKS,
        disable_log_stats=False,
        served_model_name="tiny",
        num_gpu_blocks_override=13,
    ) as llm:
        before = Values()
        llm.generate([prompt(random_tokens(80, seed=i)) for i in range(2)], greedy(300))
        assert grew(before, "admissions_refused_total", reason="streams") == 0
        assert grew(before, "preemptions_total") == 0
        assert grew(before, "admissions_total") == 2


def test_rolled_streams_are_counted_whole(tiny_folder: Path) -> None:
    """A stream that rolls all the time, and a prompt longer than a segment."""
    settings = {"disable_log_stats": False, "served_model_name": "tiny"}
    with streams.rolling(tiny("llama-gqa", tiny_folder), **settings) as llm:
        before = Values()
        streams.run(
            llm,
            {
                "stream": (random_tokens(30), greedy(700)),
                "prompt": (random_tokens(500, seed=1), greedy(100)),
            },
        )
        assert grew(before, "rollovers_total") == scheduler_of(llm).rollovers > 12
        assert grew(before, "rollover_seconds_count") == scheduler_of(llm).rollovers
        assert grew(before, "stream_tokens_sum") == 730 + 600
        kept = streams.SINKS + streams.WINDOW
        # The last token that is sampled is never computed.
        assert grew(before, "tokens_evicted_total") == (729 - kept) + (599 - kept)


def test_without_the_policy_nothing_is_exported(tiny_folder: Path) -> None:
    forget()
    with engine(tiny("llama-gqa", tiny_folder), None, disable_log_stats=False, max_model_len=128):
        assert not Values().samples


def test_with_statistics_off_nothing_is_counted(tiny_folder: Path) -> None:
    forget()
    with engine(tiny("llama-gqa", tiny_folder), WINDOW, SINKS, disable_log_stats=True) as llm:
        llm.generate([prompt(random_tokens(80))], greedy(100))
        assert not Values().samples
