"""A stream's output is the same whether its bookkeeping is one segment or fifty."""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from vllm.exceptions import VLLMValidationError
from vllm.sampling_params import RequestOutputKind

from tests.e2e.engines import greedy, prompt, random_tokens, scheduler_of, tiny
from tests.e2e.streams import (
    COUNT,
    SAMPLING,
    SEGMENT,
    SINKS,
    WHOLE,
    difference,
    rolling,
    run,
    said,
    sampled,
    say_all,
)
from vllm_sink.streaming import output_trimming
from vllm_sink.worker.v1_runner import V1RunnerTables

# One worker: the tests share what the module sets up.


@pytest.fixture(scope="module")
def folder(tiny_folder: Path) -> Path:
    return tiny("llama-gqa", tiny_folder)


@pytest.mark.parametrize(
    "arch",
    ["llama-gqa", "falcon-alibi", "gemma3", pytest.param("gpt-neox", marks=pytest.mark.slow)],
)
def test_every_token_equals_the_reference(arch: str, tiny_folder: Path) -> None:
    """Streams with different S and W roll side by side, short requests come and go."""
    folder = tiny(arch, tiny_folder)
    count = 2500 if arch == "llama-gqa" else 500
    streams = {"5": (SINKS, None), "0": (0, 11), "20": (20, None), "16": (16, 1)}
    with rolling(folder) as llm:
        core, scheduler = llm.llm_engine, scheduler_of(llm)
        for i, (name, kept) in enumerate(streams.items()):
            tokens = random_tokens(30 + 50 * i, seed=i)
            core.add_request(name, prompt(tokens), greedy(count if i == 0 else 500, *kept))
        last, longest, steps = {}, 0, 0
        while core.has_unfinished_requests():
            if steps % 23 == 0:
                short = random_tokens(5 + steps % 90, seed=steps)
                core.add_request(f"short-{steps}", prompt(short), greedy(7, sinks=steps % 4))
            for output in core.step():
                last[output.request_id] = output
            longest = max([longest, *(r.num_tokens for r in scheduler.requests.values())])
            steps += 1
        rollovers = scheduler.rollovers
    assert longest < SEGMENT
    assert rollovers >= (30 if arch == "llama-gqa" else 15)
    for name, output in last.items():
        short = int(name.partition("-")[2] or 0)
        assert difference(output, folder, *streams.get(name, (short % 4, None))) < 1e-4
        assert output.outputs[0].finish_reason == "length"
    assert [len(last[n].outputs[0].token_ids) for n in streams] == [count, 500, 500, 500]


def test_the_check_sees_a_base_that_is_off(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The base matters to the rotation for the sinks: one token more shows."""
    right = V1RunnerTables.token_bases

    def wrong(self: V1RunnerTables, counts: Any) -> torch.Tensor | None:
        more = right(self, counts)
        return None if more is None else more + 1

    monkeypatch.setattr(V1RunnerTables, "token_bases", wrong)
    with rolling(folder) as llm:
        output = run(llm, {"a": (random_tokens(30), greedy(400, SINKS))})["a"]
    assert difference(output, folder, SINKS) > 0.01


# -- what is sampled ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(folder: Path) -> dict[str, Any]:
    """The output in one segment."""
    return say_all(folder, WHOLE)


def test_sampling_does_not_know_segments(folder: Path, whole: dict[str, Any]) -> None:
    """Seeds, penalties, biases, bad words, least lengths and stop strings."""
    outputs = say_all(folder, SEGMENT)
    assert {n: said(o) for n, o in outputs.items()} == {n: said(o) for n, o in whole.items()}
    for name, output in outputs.items():
        assert output.outputs[0].text == whole[name].outputs[0].text
        assert output.outputs[0].finish_reason == whole[name].outputs[0].finish_reason
    assert 450 <= len(said(outputs["min_tokens"])) < COUNT
    assert 200 <= len(said(outputs["stop string"])) < COUNT
    assert len({tuple(said(o)) for o in outputs.values()}) == len(SAMPLING)


def test_several_answers_to_one_prompt(folder: Path) -> None:
    """``n`` answers are ``n`` streams."""
    answers = []
    for segment in (WHOLE, SEGMENT):
        with rolling(folder, segment_tokens=segment) as llm:
            (output,) = llm.generate(prompt(random_tokens(99)), sampled(n=3), use_tqdm=False)
        answers.append([list(o.token_ids) for o in output.outputs])
    assert answers[0] == answers[1]
    assert len({tuple(a) for a in answers[0]}) == 3


# -- prompts --------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk", [16, 64, 1024])
def test_prompts_longer_than_a_segment(folder: Path, chunk: int) -> None:
    """They are fed in pieces, next to others, and the output is exact."""
    lengths = (SEGMENT - 17, SEGMENT - 16, SEGMENT - 15, SEGMENT - 1, SEGMENT, 1234)
    with rolling(folder, max_num_batched_tokens=chunk) as llm:
        outputs = run(
            llm,
            {
                str(n): (random_tokens(n, seed=n), greedy(100, 20 if n == SEGMENT else 5))
                for n in lengths
            },
        )
        fed = scheduler_of(llm).rollovers
    assert fed > 1234 // SEGMENT
    for n in lengths:
        output = outputs[str(n)]
        assert len(output.prompt_token_ids) == n
        assert len(said(output)) == 100
        assert difference(output, folder, 20 if n == SEGMENT else 5) < 1e-4


def test_penalties_count_a_prompt_that_is_fed(folder: Path) -> None:
    """A repetition penalty covers the whole prompt, however it was fed."""
    tokens, answers = random_tokens(700), []
    for segment in (WHOLE, SEGMENT):
        with rolling(folder, segment_tokens=segment) as llm:
            params = greedy(300, repetition_penalty=1.3)
            answers.append(said(run(llm, {"a": (tokens, params)})["a"]))
    assert answers[0] == answers[1]


def test_a_second_turn_over_a_rolled_stream(folder: Path) -> None:
    """Blocks of a rolled stream are cached under the hashes of its whole text, and are right."""
    first = random_tokens(100)
    with rolling(folder) as llm:
        one = run(llm, {"1": (first, greedy(700))})["1"]
        text = first + said(one)
        # Another S must not take them, nor what another text left behind.
        others = {
            "2": (text + random_tokens(30, seed=2), greedy(80)),
            "3": (text + random_tokens(30, seed=3), greedy(80, sinks=20)),
            "4": (text[50:], greedy(80)),
        }
        two = run(llm, others)
    for name, output in two.items():
        assert difference(output, folder, 20 if name == "3" else SINKS) < 1e-4


# -- where a stream ends --------------------------------------------------------------------------


def test_a_stream_runs_until_it_is_stopped(folder: Path) -> None:
    with rolling(folder) as llm:
        core = llm.llm_engine
        params = greedy(1)
        params.max_tokens, params.extra_args = None, {"endless": True}
        core.add_request("endless", prompt(random_tokens(10)), params)
        for _ in range(1000):
            (output,) = core.step()
        assert not output.finished
        assert len(output.outputs[0].token_ids) == 1000
        core.abort_request(["endless"])
        while core.has_unfinished_requests():
            core.step()
        core.step()


@pytest.mark.parametrize(("wanted", "told"), [(None, 118), (10**12, 590), (333, 333)])
def test_max_model_len_ends_a_stream(folder: Path, wanted: int | None, told: int) -> None:
    with rolling(folder, max_model_len=600) as llm:
        params = greedy(1)
        params.max_tokens = wanted
        output = run(llm, {"a": (random_tokens(10), params)})["a"]
        with pytest.raises(VLLMValidationError, match="600"):
            run(llm, {"b": (random_tokens(601), greedy(5))})
    assert len(said(output)) == told
    assert output.outputs[0].finish_reason == "length"


@pytest.mark.parametrize(
    ("settings", "field"),
    [({"prompt_logprobs": 0}, "prompt_logprobs"), ({"sinks": 70}, "sink_tokens")],
)
def test_what_does_not_fit_a_segment(folder: Path, settings: dict[str, Any], field: str) -> None:
    with rolling(folder) as llm:
        with pytest.raises(VLLMValidationError, match=f"{field}.*--segment-tokens"):
            run(llm, {"a": (random_tokens(300), greedy(10, **settings))})
        # A prompt that fits may have them, and roll afterwards.
        fits = greedy(300, prompt_logprobs=0)
        output = run(llm, {"b": (random_tokens(SEGMENT - 16), fits)})["b"]
    assert len(output.prompt_logprobs) == SEGMENT - 16
    assert difference(output, folder, SINKS) < 1e-4


# -- what the front end keeps ---------------------------------------------------------------------


@pytest.mark.parametrize("interval", [1, 7])
def test_a_streamed_answer_is_not_kept(
    folder: Path, whole: dict[str, Any], interval: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pieces add up to the whole; sent output is dropped."""
    monkeypatch.setattr(output_trimming, "KEEP", 20)
    monkeypatch.setattr(output_trimming, "EVERY", 50)
    names = ("seed", "stop string", "min_tokens")
    with rolling(folder, stream_interval=interval) as llm:
        core = llm.llm_engine
        for name in names:
            params = SAMPLING[name].clone()
            params.output_kind, params.logprobs = RequestOutputKind.DELTA, 0
            at = list(SAMPLING).index(name)
            core.add_request(name, prompt(random_tokens(20 + 31 * at, seed=at)), params)
        tokens: dict[str, list[int]] = {name: [] for name in names}
        text, logprobs, ends = dict.fromkeys(names, ""), dict.fromkeys(names, 0), {}
        while core.has_unfinished_requests():
            for output in core.step():
                (piece,) = output.outputs
                tokens[output.request_id] += piece.token_ids
                text[output.request_id] += piece.text
                logprobs[output.request_id] += len(piece.logprobs)
                for step, token in zip(piece.logprobs, piece.token_ids, strict=True):
                    assert token in step
                ends[output.request_id] = piece
            for state in core.output_processor.request_states.values():
                assert len(state.detokenizer.token_ids) <= 50 + interval
                assert len(state.detokenizer.output_text) <= 50 * 8
                assert len(state.logprobs_processor.logprobs) <= 50 + interval
    for name in names:
        assert tokens[name] == said(whole[name])
        assert logprobs[name] == len(tokens[name])
        assert text[name] == whole[name].outputs[0].text
        if hasattr(ends[name], "weight_versions"):  # vLLM 0.29 has none
            (span,) = ends[name].weight_versions
            assert (span.start, span.end) == (0, len(tokens[name]))


# -- streams that end ------------------------------------------------------------------------------


def test_aborts_at_any_moment(folder: Path) -> None:
    """No block leaks (``rolling`` checks), and no other stream's output changes."""
    params = greedy(900)
    with rolling(folder, enable_prefix_caching=False) as llm:
        alone = said(run(llm, {"a": (random_tokens(33), params)})["a"])
    rng = Random(0)
    with rolling(folder) as llm:
        core = llm.llm_engine
        core.add_request("a", prompt(random_tokens(33)), params)
        live: set[str] = set()
        aborted, last = 0, None
        while core.has_unfinished_requests():
            if "a" in core.output_processor.external_req_ids and len(live) < 6:
                name = f"x{rng.random()}"
                tokens = random_tokens(rng.randint(1, 3 * SEGMENT), seed=rng.randint(0, 9))
                core.add_request(
                    name, prompt(tokens), greedy(rng.randint(1, 400), rng.choice([0, 1]))
                )
                live.add(name)
            if live and rng.random() < 0.2:
                core.abort_request([name := rng.choice(sorted(live))])
                live.discard(name)
                aborted += 1
            for output in core.step():
                if output.request_id == "a":
                    last = output
                elif output.finished:
                    live.discard(output.request_id)
        core.step()
        rollovers = scheduler_of(llm).rollovers
    assert last is not None
    assert said(last) == alone
    assert aborted > 50
    assert rollovers > 60


def test_a_preempted_stream_starts_again_from_what_it_remembers(folder: Path) -> None:
    """Forced, because admission never does it: exact for the remaining text, and counted."""
    with rolling(folder) as llm:
        core, scheduler = llm.llm_engine, scheduler_of(llm)
        core.add_request("a", prompt(random_tokens(50)), greedy(700))
        core.add_request("b", prompt(random_tokens(400, seed=1)), greedy(300))
        core.add_request("c", prompt(random_tokens(20, seed=2)), greedy(30))
        remembered: dict[str, tuple[int, list[int]]] = {}
        last, steps = {}, 0
        while core.has_unfinished_requests():
            for output in core.step():
                last[output.request_id] = output
            steps += 1
            if steps == 200:
                assert scheduler.reset_prefix_cache(reset_running_requests=True)
                for name, request in scheduler.requests.items():
                    name = name.partition("-")[0]
                    remembered[name] = (len(said(last[name])), list(request.all_token_ids))
        assert scheduler.restarts == 2
        assert set(remembered) == {"a", "b"}
        # What they recomputed is theirs alone: no other request is given it.
        text = [*last["a"].prompt_token_ids, *said(last["a"])]
        other = run(llm, {"d": (text[:250], greedy(100))})["d"]
    for name, (count, text) in remembered.items():
        output = last[name]
        completion = output.outputs[0]
        output.prompt_token_ids = text
        completion.token_ids = completion.token_ids[count:]
        completion.logprobs = completion.logprobs[count:]
        assert len(text) < SEGMENT
        assert difference(output, folder, SINKS) < 1e-4
    assert len(said(last["c"])) == 30
    assert difference(other, folder, SINKS) < 1e-4


def test_a_full_pool_queues_and_never_preempts(folder: Path) -> None:
    """Endless streams reserve a window, not their length; one that does not fit waits."""
    with rolling(folder, num_gpu_blocks_override=26, max_num_batched_tokens=32) as llm:
        core, scheduler = llm.llm_engine, scheduler_of(llm)
        for i in range(8):
            core.add_request(str(i), prompt(random_tokens(100 + 40 * i, seed=i)), greedy(300))
        most, preempted = 0, 0
        while core.has_unfinished_requests():
            core.step()
            most = max(most, len(scheduler.running))
            preempted += sum(r.num_preemptions for r in scheduler.requests.values())
        assert scheduler.rollovers > 8 * 4
    assert 2 <= most < 8
    assert preempted == 0
