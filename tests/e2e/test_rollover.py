"""A stream says the same whether its bookkeeping is one segment or fifty."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.e2e.engines import (
    engine,
    greedy,
    prompt,
    random_tokens,
    reference_logprobs,
    scheduler_of,
    tiny,
)

# One worker: the tests share what the module sets up.
pytestmark = pytest.mark.xdist_group("rollover")

WINDOW, SINKS, BLOCK = 40, 5, 16
#: Rolls every 64 tokens or so.
SEGMENT = 160


@pytest.fixture(scope="module")
def folder(tiny_folder: Path) -> Path:
    return tiny("llama-gqa", tiny_folder)


@contextmanager
def rolling(folder: Path, **settings: Any) -> Iterator[Any]:
    """An engine whose streams roll all the time, and whose blocks are all free in the end."""
    settings = {"segment_tokens": SEGMENT, "max_model_len": None, "block_size": BLOCK, **settings}
    with engine(folder, WINDOW, SINKS, **settings) as llm:
        free = scheduler_of(llm).kv_cache_manager.block_pool.get_num_free_blocks
        before = free()
        yield llm
        assert free() == before
        assert not scheduler_of(llm).manager.streams
        assert not scheduler_of(llm)._rests


def run(llm: Any, requests: dict[str, tuple[Sequence[int], Any]]) -> dict[str, Any]:
    """All requests at once; the last output of each."""
    core = llm.llm_engine
    for name, (tokens, params) in requests.items():
        core.add_request(name, prompt(tokens), params)
    last = {}
    while core.has_unfinished_requests():
        for output in core.step():
            last[output.request_id] = output
    return last


def told(output: Any) -> torch.Tensor:
    """Log-probabilities of the output's tokens."""
    completion = output.outputs[0]
    steps = zip(completion.logprobs, completion.token_ids, strict=True)
    return torch.tensor([step[token].logprob for step, token in steps], dtype=torch.float64)


def assert_exact(output: Any, folder: Path, sinks: int) -> None:
    said = [*output.prompt_token_ids, *output.outputs[0].token_ids]
    expected = reference_logprobs(folder, sinks, WINDOW, said)[len(output.prompt_token_ids) - 1 :]
    assert (told(output) - expected).abs().max() < 1e-4


@pytest.mark.parametrize("arch", ["llama-gqa", "falcon-alibi", "gpt-neox", "gemma3"])
def test_every_token_equals_the_reference(arch: str, tiny_folder: Path) -> None:
    """Streams with different S roll side by side, short requests come and go."""
    folder = tiny(arch, tiny_folder)
    count = 3000 if arch == "llama-gqa" else 500
    streams = {"5": SINKS, "0": 0, "20": 20, "16": 16}
    with rolling(folder) as llm:
        core, scheduler = llm.llm_engine, scheduler_of(llm)
        for i, (name, sinks) in enumerate(streams.items()):
            tokens = random_tokens(30 + 50 * i, seed=i)
            core.add_request(name, prompt(tokens), greedy(count if i == 0 else 500, sinks))
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
        assert_exact(output, folder, streams.get(name, short % 4))
        assert output.outputs[0].finish_reason == "length"
    assert [len(last[n].outputs[0].token_ids) for n in streams] == [count, 500, 500, 500]


def test_the_check_sees_a_base_that_is_off(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The base matters to what the sinks are met with: one token more is seen."""
    from vllm_sink.worker.rollover import V1Rollovers

    right = V1Rollovers.positions

    def wrong(self: V1Rollovers, counts: Any) -> torch.Tensor | None:
        more = right(self, counts)
        return None if more is None else more + 1

    monkeypatch.setattr(V1Rollovers, "positions", wrong)
    with rolling(folder) as llm:
        output = run(llm, {"a": (random_tokens(30), greedy(400, SINKS))})["a"]
    with pytest.raises(AssertionError):
        assert_exact(output, folder, SINKS)
