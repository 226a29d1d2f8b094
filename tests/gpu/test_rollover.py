"""Rollovers on vLLM's V2 runner, scheduled one step ahead: nothing of a stream may change."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest

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

pytestmark = pytest.mark.gpu

#: A named pool: nothing is measured, so tests may share a GPU.
SETTINGS = {"kv_cache_memory_bytes": 64 << 20, "gpu_memory_utilization": 0.05}
#: Matrix products in float32 on a GPU round otherwise than on a CPU.
BOUND = 1e-3


@pytest.mark.parametrize("eager", [True, False])
@pytest.mark.parametrize("arch", ["llama-gqa", "falcon-alibi"])
def test_every_token_equals_the_reference(arch: str, eager: bool, tiny_folder: Path) -> None:
    """Eager, and compiled with CUDA graphs; different S; short requests come and go."""
    folder = tiny(arch, tiny_folder)
    streams = {"5": SINKS, "0": 0, "20": 20}
    with rolling(folder, enforce_eager=eager, **SETTINGS) as llm:
        core, scheduler = llm.llm_engine, scheduler_of(llm)
        assert core.vllm_config.use_v2_model_runner
        assert core.vllm_config.scheduler_config.async_scheduling
        for i, (name, sinks) in enumerate(streams.items()):
            tokens = random_tokens(30 + 300 * i, seed=i)
            core.add_request(name, prompt(tokens), greedy(1200, sinks))
        last, steps = {}, 0
        while core.has_unfinished_requests():
            if steps % 23 == 0:
                short = random_tokens(5 + steps % 90, seed=steps)
                core.add_request(f"short-{steps}", prompt(short), greedy(7, sinks=steps % 4))
            for output in core.step():
                last[output.request_id] = output
            steps += 1
        assert scheduler.rollovers >= 30
        assert llm.collective_rpc("count_rollovers") == [scheduler.rollovers]
    for name, output in last.items():
        short = int(name.partition("-")[2] or 0)
        assert difference(output, folder, streams.get(name, short % 4)) < BOUND


def test_sampling_does_not_know_segments(tiny_folder: Path) -> None:
    """One at a time, so that no batch rounds otherwise: seeds, penalties, biases, least lengths."""
    folder = tiny("llama-gqa", tiny_folder)
    whole, rolled = (
        say_all(folder, segment, max_num_seqs=1, **SETTINGS) for segment in (WHOLE, SEGMENT)
    )
    assert {n: said(o) for n, o in rolled.items()} == {n: said(o) for n, o in whole.items()}
    assert len({tuple(said(o)) for o in rolled.values()}) == len(SAMPLING)


@pytest.mark.parametrize("chunk", [64, 1024])
def test_prompts_longer_than_a_segment(chunk: int, tiny_folder: Path) -> None:
    folder = tiny("llama-gqa", tiny_folder)
    lengths = (SEGMENT - 17, SEGMENT - 16, SEGMENT - 15, SEGMENT - 1, SEGMENT, 1234)
    with rolling(folder, max_num_batched_tokens=chunk, **SETTINGS) as llm:
        requests = {str(n): (random_tokens(n, seed=n), greedy(100)) for n in lengths}
        outputs = run(llm, requests)
    for n in lengths:
        assert len(said(outputs[str(n)])) == 100
        assert difference(outputs[str(n)], folder, SINKS) < BOUND


def test_penalties_count_a_prompt_that_is_fed(tiny_folder: Path) -> None:
    """A repetition penalty covers the whole prompt, however it was fed."""
    folder = tiny("llama-gqa", tiny_folder)
    tokens, answers = random_tokens(700), []
    for segment in (WHOLE, SEGMENT):
        with rolling(folder, segment_tokens=segment, max_num_seqs=1, **SETTINGS) as llm:
            params = greedy(300, repetition_penalty=1.3)
            answers.append(said(run(llm, {"a": (tokens, params)})["a"]))
    assert answers[0] == answers[1]


def test_aborts_at_any_moment(tiny_folder: Path) -> None:
    """No block leaks (``rolling`` checks), with a step in flight as well."""
    rng, folder = Random(0), tiny("llama-gqa", tiny_folder)
    with rolling(folder, **SETTINGS) as llm:
        core, names = llm.llm_engine, []
        core.add_request("a", prompt(random_tokens(33)), greedy(900))
        last = None
        while core.has_unfinished_requests():
            if last is None or not last.finished:
                name = f"x{rng.random()}"
                tokens = random_tokens(rng.randint(1, 3 * SEGMENT), seed=rng.randint(0, 9))
                core.add_request(name, prompt(tokens), greedy(rng.randint(1, 400)))
                names.append(name)
            if len(names) > 5 or last is not None:
                core.abort_request([names.pop(rng.randrange(len(names)))] if names else [])
            for output in core.step():
                if output.request_id == "a":
                    last = output
        for _ in range(4):
            core.step()
    assert last is not None
    assert difference(last, folder, SINKS) < BOUND
