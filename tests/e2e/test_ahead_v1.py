"""Rollovers on the V1 runner under asynchronous scheduling: nothing of a stream may change."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

from tests.e2e.ahead import one_step_ahead
from tests.e2e.engines import greedy, prompt, random_tokens, scheduler_of, tiny
from tests.e2e.streams import (
    SAMPLING,
    SEGMENT,
    SINKS,
    WHOLE,
    difference,
    rolling,
    run,
    said,
    say_all,
)
from vllm_sink.engine.scheduler import SinkAsyncScheduler


@pytest.fixture(autouse=True)
def ahead() -> Iterator[None]:
    with one_step_ahead():
        yield


@pytest.fixture
def folder(tiny_folder: Path) -> Path:
    return tiny("llama-gqa", tiny_folder)


def test_every_token_equals_the_reference(folder: Path) -> None:
    """Streams alone in their step and with others; short requests and long prompts beside them."""
    streams = {"5": SINKS, "0": 0, "20": 20}
    most = 0
    with rolling(folder) as llm:
        core, scheduler = llm.llm_engine, scheduler_of(llm)
        assert isinstance(scheduler, SinkAsyncScheduler)
        assert not core.vllm_config.use_v2_model_runner
        for i, (name, sinks) in enumerate(streams.items()):
            tokens = random_tokens(30 + 200 * i, seed=i)
            core.add_request(name, prompt(tokens), greedy(400 + 300 * i, sinks))
        last, steps = {}, 0
        while core.has_unfinished_requests():
            if steps % 23 == 0 and steps < 600:
                short = random_tokens(5 + steps % 90, seed=steps)
                core.add_request(f"short-{steps}", prompt(short), greedy(7, sinks=steps % 4))
            most = max([most, *(r.num_in_flight_tokens for r in scheduler.requests.values())])
            for output in core.step():
                last[output.request_id] = output
            steps += 1
        assert scheduler.rollovers >= 30
        assert llm.collective_rpc("count_rollovers") == [scheduler.rollovers]
    assert most > 0, "nothing was ever in flight: this test sees nothing"
    assert [len(said(last[name])) for name in streams] == [400, 700, 1000]
    for name, output in last.items():
        short = int(name.partition("-")[2] or 0)
        assert difference(output, folder, streams.get(name, short % 4)) < 1e-4


def test_sampling_does_not_know_segments(folder: Path) -> None:
    """Seeds, penalties, biases, bad words, least lengths and stop strings."""
    whole, rolled = (say_all(folder, segment) for segment in (WHOLE, SEGMENT))
    assert {n: said(o) for n, o in rolled.items()} == {n: said(o) for n, o in whole.items()}
    assert len({tuple(said(o)) for o in rolled.values()}) == len(SAMPLING)


@pytest.mark.parametrize("chunk", [16, 64, 1024])
def test_prompts_longer_than_a_segment(folder: Path, chunk: int) -> None:
    lengths = (SEGMENT - 17, SEGMENT - 16, SEGMENT - 15, SEGMENT - 1, SEGMENT, 1234)
    with rolling(folder, max_num_batched_tokens=chunk) as llm:
        requests = {str(n): (random_tokens(n, seed=n), greedy(100)) for n in lengths}
        outputs = run(llm, requests)
    for n in lengths:
        assert len(said(outputs[str(n)])) == 100
        assert difference(outputs[str(n)], folder, SINKS) < 1e-4


@pytest.mark.parametrize(
    "seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (1, 2))]
)
def test_aborts_at_any_moment(folder: Path, seed: int) -> None:
    """With a step in flight too: no block leaks (``rolling`` looks), no other stream changes."""
    params, rng = greedy(700), Random(seed)
    with rolling(folder, enable_prefix_caching=False) as llm:
        alone = said(run(llm, {"a": (random_tokens(33), params)})["a"])
    aborted = moments = 0
    with rolling(folder) as llm:
        core, scheduler = llm.llm_engine, scheduler_of(llm)
        core.add_request("a", prompt(random_tokens(33)), params)
        live: set[str] = set()
        last = None
        while core.has_unfinished_requests():
            if last is None or not last.finished:
                if len(live) < 6:
                    name = f"x{rng.random()}"
                    tokens = random_tokens(rng.randint(1, 3 * SEGMENT), seed=rng.randint(0, 9))
                    sinks = rng.choice([0, 1])
                    core.add_request(name, prompt(tokens), greedy(rng.randint(1, 400), sinks))
                    live.add(name)
                # Those whose segment is full are about to roll, or waiting for what is in flight.
                full = {
                    r.request_id.rpartition("-")[0]
                    for r in scheduler.running
                    if r.num_tokens >= scheduler.full - 1
                }
                if live and rng.random() < 0.3:
                    name = rng.choice(sorted(live & full or live))
                    moments += name in full
                    core.abort_request([name])
                    live.discard(name)
                    aborted += 1
            else:
                core.abort_request(sorted(live))
            for output in core.step():
                if output.request_id == "a":
                    last = output
                elif output.finished:
                    live.discard(output.request_id)
        for _ in range(3):
            core.step()
        assert scheduler.rollovers > 40
    assert last is not None
    assert said(last) == alone
    assert aborted > 50
    assert moments > 5
