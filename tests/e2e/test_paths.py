"""The same tokens, whichever way a stream goes through the engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.e2e.engines import (
    engine,
    greedy,
    logprobs,
    prompt,
    random_tokens,
    reference_logprobs,
    scheduler_of,
    tiny,
)

# One worker: the tests share what the module sets up.

WINDOW, SINKS = 40, 5
LENGTHS = (3, 17, 44, 45, 46, 90, 200, 333)
COUNT = 60


@pytest.fixture(scope="module")
def folder(tiny_folder: Path) -> Path:
    return tiny("llama-gqa", tiny_folder)


@pytest.fixture(scope="module")
def alone(folder: Path) -> dict[int, list[int]]:
    """Each stream's output with the engine to itself, compared with the reference."""
    said = {}
    with engine(folder, WINDOW, SINKS, enable_prefix_caching=False) as llm:
        for length in LENGTHS:
            tokens = random_tokens(length, seed=length)
            (out,) = llm.generate(prompt(tokens), greedy(COUNT, prompt_logprobs=0), use_tqdm=False)
            said[length] = list(out.outputs[0].token_ids)
            every = tokens + said[length]
            expected = reference_logprobs(folder, SINKS, WINDOW, every)
            assert (logprobs(out) - expected).abs().max() < 1e-4
    return said


def _run_all(llm: Any) -> list[list[int]]:
    outputs = llm.generate(
        [prompt(random_tokens(length, seed=length)) for length in LENGTHS],
        greedy(COUNT),
        use_tqdm=False,
    )
    return [list(output.outputs[0].token_ids) for output in outputs]


@pytest.mark.parametrize("chunk", [16, 48, 300, 4096])
def test_batched_and_chunked(folder: Path, alone: dict[int, list[int]], chunk: int) -> None:
    """Eight streams at different lengths, with short ordinary requests coming and going."""
    with engine(folder, WINDOW, SINKS, max_num_batched_tokens=chunk) as llm:
        core = llm.llm_engine
        for length in LENGTHS:
            tokens = random_tokens(length, seed=length)
            core.add_request(f"stream-{length}", prompt(tokens), greedy(COUNT))
        said: dict[str, list[int]] = {}
        steps = 0
        while core.has_unfinished_requests():
            if steps % 7 == 0 and steps < 70:
                short = random_tokens(5 + steps, seed=1000 + steps)
                core.add_request(f"short-{steps}", prompt(short), greedy(3, sinks=steps % 4))
            for output in core.step():
                said[output.request_id] = list(output.outputs[0].token_ids)
            steps += 1
    assert [said[f"stream-{length}"] for length in LENGTHS] == [alone[n] for n in LENGTHS]


@pytest.mark.parametrize("block", [8, 32, 64])
def test_block_sizes(folder: Path, alone: dict[int, list[int]], block: int) -> None:
    with engine(folder, WINDOW, SINKS, block_size=block) as llm:
        assert _run_all(llm) == [alone[length] for length in LENGTHS]


def test_second_turn_hits_the_prefix_cache(folder: Path, alone: dict[int, list[int]]) -> None:
    """A second turn reuses sinks and window of the first, and gives its output without a cache."""
    length = LENGTHS[-1]
    first = random_tokens(length, seed=length)
    second = first + alone[length] + random_tokens(25, seed=7)
    with engine(folder, WINDOW, SINKS, enable_prefix_caching=False) as llm:
        (cold,) = llm.generate(prompt(second), greedy(COUNT), use_tqdm=False)
    with engine(folder, WINDOW, SINKS) as llm:
        (once,) = llm.generate(prompt(first), greedy(COUNT), use_tqdm=False)
        (warm,) = llm.generate(prompt(second), greedy(COUNT), use_tqdm=False)
        # Another S makes other keys: it may share only what every S sees alike.
        (other,) = llm.generate(prompt(second), greedy(COUNT, sinks=20), use_tqdm=False)
    with engine(folder, WINDOW, SINKS, enable_prefix_caching=False) as llm:
        (other_cold,) = llm.generate(prompt(second), greedy(COUNT, sinks=20), use_tqdm=False)
    assert list(once.outputs[0].token_ids) == alone[length]
    # All whole blocks of the first turn but the last token, whose output was never fed back.
    assert warm.num_cached_tokens == (length + COUNT - 1) // 16 * 16
    assert warm.outputs[0].token_ids == cold.outputs[0].token_ids
    assert other.num_cached_tokens <= SINKS + WINDOW
    assert other.outputs[0].token_ids == other_cold.outputs[0].token_ids


def test_preempted(folder: Path, alone: dict[int, list[int]]) -> None:
    """Every stream is preempted in the middle, its blocks gone from the cache, and resumes."""
    with engine(folder, WINDOW, SINKS) as llm:
        core = llm.llm_engine
        scheduler = scheduler_of(llm)
        for length in LENGTHS:
            tokens = random_tokens(length, seed=length)
            core.add_request(f"stream-{length}", prompt(tokens), greedy(COUNT))
        said: dict[str, list[int]] = {}
        steps = 0
        while core.has_unfinished_requests():
            for output in core.step():
                said[output.request_id] = list(output.outputs[0].token_ids)
            steps += 1
            if steps in (20, 45):
                assert scheduler.reset_prefix_cache(reset_running_requests=True)
                assert scheduler.kv_cache_manager.block_pool.get_usage() == 0
        assert steps > 45
    assert [said[f"stream-{length}"] for length in LENGTHS] == [alone[n] for n in LENGTHS]


def test_blocks_stay_constant(folder: Path) -> None:
    """Once the window is full a stream holds as many blocks at token 3,000 as at token 100."""
    block = 16
    with engine(folder, WINDOW, SINKS, block_size=block) as llm:
        core, scheduler = llm.llm_engine, scheduler_of(llm)
        core.add_request("stream", prompt(random_tokens(50)), greedy(3000))
        manager = scheduler.manager
        free = scheduler.kv_cache_manager.block_pool.get_num_free_blocks
        total = free()
        held = []
        while core.has_unfinished_requests():
            core.step()
            if manager.streams:
                ((_, stream),) = manager.streams.items()
                assert total - free() == stream.held
                held.append(stream.held)
        steady = held[100:]
        # One block of sinks, and the 3 or 4 blocks that 40 tokens can lie in.
        assert set(steady) <= {1 + 3, 1 + 4}
        assert free() == total


def test_admission_reserves_what_streams_may_need(folder: Path) -> None:
    """A full pool queues new streams; no running one is ever preempted."""
    with engine(
        folder, WINDOW, SINKS, num_gpu_blocks_override=26, max_num_batched_tokens=32
    ) as llm:
        core, scheduler = llm.llm_engine, scheduler_of(llm)
        for i in range(8):
            core.add_request(str(i), prompt(random_tokens(100, seed=i)), greedy(80))
        most, preempted = 0, 0
        while core.has_unfinished_requests():
            core.step()
            most = max(most, len(scheduler.running))
            preempted += sum(r.num_preemptions for r in scheduler.requests.values())
    assert 2 <= most < 8
    assert preempted == 0


@pytest.mark.parametrize("chunk", [16, 512])
def test_seeds_and_penalties_ride_along(folder: Path, chunk: int) -> None:
    """Sampling is vLLM's own: a seeded stream repeats itself, alone, in a batch or in chunks."""
    from vllm import SamplingParams

    params = SamplingParams(
        max_tokens=80, temperature=0.8, seed=11, presence_penalty=0.5, ignore_eos=True
    )
    tokens = random_tokens(60, seed=3)
    with engine(folder, WINDOW, SINKS, max_num_batched_tokens=512) as llm:
        (one,) = llm.generate(prompt(tokens), params, use_tqdm=False)
    with engine(folder, WINDOW, SINKS, max_num_batched_tokens=chunk) as llm:
        many = llm.generate(
            [prompt(tokens), prompt(random_tokens(30))], [params, greedy(80)], use_tqdm=False
        )
    assert one.outputs[0].token_ids == many[0].outputs[0].token_ids
    assert len(set(one.outputs[0].token_ids)) > 5
