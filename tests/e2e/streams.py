"""Engines whose streams roll all the time, and the reference beside them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from vllm import SamplingParams

from tests.e2e.engines import engine, prompt, random_tokens, reference_logprobs, scheduler_of

WINDOW, SINKS, BLOCK = 40, 5, 16
#: Rolls every 64 tokens or so.
SEGMENT = 160
#: A segment that no stream here fills.
WHOLE = 8192


@contextmanager
def rolling(folder: Path, **settings: Any) -> Iterator[Any]:
    """An engine with small segments; when it ends, all blocks must be free."""
    settings = {"segment_tokens": SEGMENT, "max_model_len": None, "block_size": BLOCK, **settings}
    with engine(folder, WINDOW, SINKS, **settings) as llm:
        scheduler = scheduler_of(llm)
        free = scheduler.kv_cache_manager.block_pool.get_num_free_blocks
        before = free()
        yield llm
        assert free() == before
        assert not scheduler.manager.streams
        assert not scheduler._waiting_prompts


def run(llm: Any, requests: dict[str, tuple[Sequence[int], Any]]) -> dict[str, Any]:
    """All requests concurrently; the last output of each."""
    core = llm.llm_engine
    for name, (tokens, params) in requests.items():
        core.add_request(name, prompt(tokens), params)
    last = {}
    while core.has_unfinished_requests():
        for output in core.step():
            last[output.request_id] = output
    return last


def said(output: Any) -> list[int]:
    return list(output.outputs[0].token_ids)


def told(output: Any) -> torch.Tensor:
    """Log-probabilities of the output's tokens."""
    completion = output.outputs[0]
    steps = zip(completion.logprobs, completion.token_ids, strict=True)
    return torch.tensor([step[token].logprob for step, token in steps], dtype=torch.float64)


def difference(output: Any, folder: Path, sinks: int, window: int | None = None) -> float:
    """The largest difference of an output's log-probabilities to the reference's."""
    every = [*output.prompt_token_ids, *said(output)]
    expected = reference_logprobs(folder, sinks, window or WINDOW, every)
    expected = expected[len(output.prompt_token_ids) - 1 :]
    return float((told(output) - expected).abs().max())


#: Tokens of each answer below.
COUNT = 500


def sampled(**settings: Any) -> SamplingParams:
    return SamplingParams(
        **{"max_tokens": COUNT, "temperature": 0.8, "seed": 7, "ignore_eos": True, **settings}
    )


#: Ways to sample, each of which depends on earlier tokens.
SAMPLING = {
    "seed": sampled(),
    "presence": sampled(presence_penalty=0.9),
    "frequency": sampled(frequency_penalty=0.4),
    "repetition": sampled(repetition_penalty=1.2),
    "greedy with penalties": sampled(
        temperature=0.0, presence_penalty=0.5, frequency_penalty=0.1, repetition_penalty=1.1
    ),
    "min_tokens": sampled(min_tokens=450, stop_token_ids=list(range(20, 120))),
    "top_k, logit bias": sampled(top_k=20, logit_bias={40: 2.0}),
    "bad words": sampled(bad_words=["a", "e", "i"]),
    "stop string": sampled(stop=["zzz", "q"], min_tokens=200),
}


def say_all(folder: Path, segment: int, **settings: Any) -> dict[str, Any]:
    """An answer for each way to sample, in segments of this size."""
    requests = {
        name: (random_tokens(20 + 31 * i, seed=i), params)
        for i, (name, params) in enumerate(SAMPLING.items())
    }
    with rolling(folder, segment_tokens=segment, **settings) as llm:
        outputs = run(llm, requests)
        rollovers = scheduler_of(llm).rollovers
    assert rollovers == 0 if segment == WHOLE else rollovers > 30
    return outputs
