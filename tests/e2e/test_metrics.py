"""The counters against arithmetic, on real engines in this process."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.engines import engine, greedy, prompt, random_tokens, scheduler_of, tiny
from tests.e2e.exported import Values, grew
from vllm_sink.commands.progress import Progress
from vllm_sink.metrics.collector import INTERVAL
from vllm_sink.metrics.definitions import METRICS

SINKS, WINDOW, BLOCK = 4, 60, 16
NATIVE = 128


@pytest.fixture(scope="module")
def llm(tiny_folder: Path) -> Iterator[Any]:
    with engine(
        tiny("llama-gqa", tiny_folder),
        WINDOW,
        SINKS,
        disable_log_stats=False,
        served_model_name="tiny",
        num_gpu_blocks_override=200,
    ) as made:
        yield made


def _evicted(computed: int, sinks: int = SINKS) -> int:
    """Tokens that the last computed one does not see, computed independently on purpose."""
    return max(0, computed - sinks - WINDOW)


def _recycled(last: int, sinks: int = SINKS) -> int:
    """Whole blocks between the sinks and the window of the token at index ``last``."""
    return max(0, (last - WINDOW + 1) // BLOCK - -(-sinks // BLOCK))


def test_counters_are_what_arithmetic_says(llm: Any) -> None:
    """Streams of several lengths and S, each alone in its prefix."""
    before = Values()
    shapes = [(10, 5, SINKS), (40, 200, SINKS), (150, 100, 20), (130, 2, SINKS), (64, 300, 0)]
    llm.generate(
        [prompt(random_tokens(n, seed=100 + i)) for i, (n, _, _) in enumerate(shapes)],
        [greedy(out, sinks) for _, out, sinks in shapes],
    )
    # The last sampled token is never computed; the last computed one stands at n + out - 2.
    assert grew(before, "tokens_evicted_total") == sum(
        _evicted(n + out - 1, s) for n, out, s in shapes
    )
    assert grew(before, "blocks_recycled_total") == sum(
        _recycled(n + out - 2, s) for n, out, s in shapes
    )
    assert grew(before, "admissions_total") == len(shapes)
    assert grew(before, "admissions_refused_total", reason="streams") == 0
    assert grew(before, "preemptions_total") == 0
    assert grew(before, "stream_tokens_count") == len(shapes)
    assert grew(before, "stream_tokens_sum") == sum(n + out for n, out, _ in shapes)
    for bound in ("10.0", "20.0", "200.0", "500.0", "1e+07"):
        assert grew(before, "stream_tokens_bucket", le=bound) == sum(
            n + out <= float(bound) for n, out, _ in shapes
        )
    assert grew(before, "stream_age_seconds_count") == len(shapes)
    assert 0 < grew(before, "stream_age_seconds_sum") < 600


def test_idle_levels(llm: Any) -> None:
    """When the last stream has ended, its message has been sent."""
    llm.generate([prompt(random_tokens(30, seed=7))], greedy(20))
    now = Values()
    assert now.get("streams") == now.get("streams_past_context") == 0
    assert now.get("blocks", kind="sink") == now.get("blocks", kind="window") == 0
    assert now.get("blocks", kind="free") == 199
    assert now.get("reserved_blocks") == 0
    assert now.get("window_occupancy_ratio") == 0
    assert now.get("engine_resident_bytes") > 50 << 20
    assert now.get("native_context_tokens") == NATIVE


def test_levels_while_streaming(llm: Any) -> None:
    """An endless stream and two that end, looked at in the middle of their lives."""
    engine_ = llm.llm_engine
    for i, (n, out) in enumerate([(140, 300), (20, 100), (64, 100)]):
        engine_.add_request(f"level-{i}", prompt(random_tokens(n, seed=50 + i)), greedy(out))
    manager = scheduler_of(llm).manager
    for _ in range(40):
        engine_.step()
    time.sleep(INTERVAL)
    engine_.step()  # so that this step's message is out
    now = Values()
    streams = manager.streams.values()
    assert now.get("streams") == 3
    assert now.get("streams_past_context") == sum(s.settled_tokens > NATIVE for s in streams) == 1
    assert now.get("blocks", kind="sink") == 3  # one block of 16 holds 4 sink tokens
    held = sum(s.held for s in streams)
    assert now.get("blocks", kind="window") == held - 3
    assert now.get("blocks", kind="free") == 199 - held
    for stream in streams:  # what `vllm-sink stream` says of one, by arithmetic
        progress = Progress(NATIVE, SINKS, WINDOW, BLOCK, tokens=stream.settled_tokens + 1)
        assert progress.blocks == stream.held
    in_windows = sum(min(s.settled_tokens, WINDOW) for s in streams)
    assert now.get("window_occupancy_ratio") == pytest.approx(in_windows / (3 * WINDOW))
    assert now.get("promised_streams") == 1
    # A window of 60 tokens begins anywhere in its first block of 16: 5 blocks, and one of sinks.
    endless = next(s for name, s in manager.streams.items() if name.startswith("level-0"))
    assert now.get("reserved_blocks") == 5 + 1 - endless.held
    engine_.abort_request([f"level-{i}" for i in range(3)], internal=True)
    while engine_.has_unfinished_requests():
        engine_.step()
    engine_.step()
    assert Values().get("streams") == 0


def test_prefix_hits(llm: Any) -> None:
    """A second turn hits the window too; another text behind the same sinks hits only those."""
    sinks = 32
    first = random_tokens(300, seed=900)
    llm.generate([prompt(first)], greedy(1, sinks))
    before = Values()
    llm.generate([prompt([*first, *random_tokens(10, seed=901)])], greedy(1, sinks))
    assert grew(before, "prefix_hits_total", reach="window") == 1
    assert grew(before, "prefix_hits_total", reach="sinks") == 0
    # 300 tokens were there, in whole blocks 288: only what came after was computed and evicted.
    assert grew(before, "tokens_evicted_total") == 310 - 288
    before = Values()
    llm.generate([prompt([*first[:sinks], *random_tokens(200, seed=902)])], greedy(1, sinks))
    assert grew(before, "prefix_hits_total", reach="sinks") == 1
    assert grew(before, "prefix_hits_total", reach="window") == 0


def test_preemption(llm: Any) -> None:
    """A preempted stream is computed again, and what it evicts again is churn again."""
    before = Values()
    engine_ = llm.llm_engine
    engine_.add_request("p", prompt(random_tokens(20, seed=70)), greedy(180))
    for _ in range(101):  # a prefill of 20 and 100 tokens more: 120 are computed
        engine_.step()
    llm.llm_engine.engine_core.engine_core.scheduler.reset_prefix_cache(reset_running_requests=True)
    while engine_.has_unfinished_requests():
        engine_.step()
    assert grew(before, "preemptions_total") == 1
    assert grew(before, "admissions_total") == 2
    assert grew(before, "tokens_evicted_total") == _evicted(120) + _evicted(199)
    assert grew(before, "stream_tokens_sum") == 200


def test_every_metric_is_there_from_the_start(llm: Any) -> None:
    """Except the tenants', which are off."""
    del llm
    text = {name for name, _ in Values().samples}
    for metric in METRICS.values():
        suffix = {"counter": "_total", "histogram": "_count", "gauge": ""}[metric.kind]
        present = metric.full_name + suffix in text
        assert present == ("tenant" not in metric.labels), metric.name
