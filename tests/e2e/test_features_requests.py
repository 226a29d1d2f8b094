"""Request options: the same on both sides of a rollover, or refused where that is impossible."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from vllm.exceptions import VLLMValidationError
from vllm.sampling_params import RepetitionDetectionParams

from tests.e2e.engines import greedy, random_tokens, scheduler_of, tiny
from tests.e2e.streams import SEGMENT, SINKS, WHOLE, difference, rolling, run, said, sampled

#: What every engine here has: thoughts end with a token of the tiny tokenizer's.
SETTINGS: dict[str, Any] = {
    "enable_prompt_embeds": True,
    "logprobs_mode": "processed_logprobs",
    "reasoning_config": {
        "reasoning_start_str": "<|system|>",
        "reasoning_end_str": "<|end|>",
    },
}
COUNT = 250

#: Request options, served side by side.
ASKED = {
    "top p, min p": {"top_p": 0.8, "min_p": 0.02},
    "allowed tokens": {"allowed_token_ids": list(range(40, 120))},
    "given tokens": {"logprob_token_ids": [40, 41], "logprobs": 2},
    "flat": {"logprobs": 3, "flat_logprobs": True},
    "stop string": {"stop": ["q", "zz"], "min_tokens": 150, "include_stop_str_in_output": True},
    "repetitions": {
        "repetition_detection": RepetitionDetectionParams(
            max_pattern_size=4, min_pattern_size=1, min_count=3
        ),
        "temperature": 0.0,
        "repetition_penalty": 0.5,
        "min_tokens": 0,
    },
    "no text": {"detokenize": False},
    "special tokens": {"skip_special_tokens": False, "spaces_between_special_tokens": False},
    "past the cache": {"skip_reading_prefix_cache": True},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its own: prompt embeddings add a token to the tokenizer that vLLM caches by its path."""
    return tiny("llama-gqa", tmp_path_factory.mktemp("embeddings"))


def _all(llm: Any) -> dict[str, Any]:
    requests = {
        name: (random_tokens(20 + 17 * i, seed=i), sampled(**{"max_tokens": COUNT, **asked}))
        for i, (name, asked) in enumerate(ASKED.items())
    }
    return run(llm, requests)


def _logprobs(output: Any) -> dict[tuple[int, int], float]:
    """Values by step and token."""
    steps = enumerate(output.outputs[0].logprobs or [])
    return {(i, token): told.logprob for i, step in steps for token, told in step.items()}


@pytest.fixture(scope="module")
def whole(folder: Path) -> dict[str, Any]:
    """The output in one segment."""
    with rolling(folder, segment_tokens=WHOLE, **SETTINGS) as llm:
        said_in_one = _all(llm)
        assert scheduler_of(llm).rollovers == 0
    return said_in_one


@pytest.fixture(scope="module")
def llm(folder: Path, whole: dict[str, Any]) -> Iterator[Any]:
    """With small segments, once the other is gone."""
    with rolling(folder, **SETTINGS) as made:
        yield made


def test_same_as_in_one_segment(whole: dict[str, Any], llm: Any) -> None:
    rolled = _all(llm)
    assert scheduler_of(llm).rollovers > 15
    for name, output in rolled.items():
        mine, expected = output.outputs[0], whole[name].outputs[0]
        assert said(output) == said(whole[name]), name
        assert (mine.text, mine.finish_reason) == (expected.text, expected.finish_reason)
        assert mine.stop_reason == expected.stop_reason
        assert _logprobs(output) == pytest.approx(_logprobs(whole[name]), abs=1e-3)
    assert set(said(rolled["allowed tokens"])) <= set(range(40, 120))
    assert rolled["stop string"].outputs[0].text.endswith(("q", "zz"))
    assert rolled["no text"].outputs[0].text == ""
    assert len(said(rolled["repetitions"])) < COUNT


def test_embeddings_say_what_their_tokens_say(folder: Path, llm: Any) -> None:
    """A prompt of embeddings that ends within its segment."""
    tokens = random_tokens(60)
    table = load_file(folder / "model.safetensors")["model.embed_tokens.weight"]
    prompt = {"prompt_embeds": table[torch.tensor(tokens)]}
    core = llm.llm_engine
    core.add_request("embeds", prompt, greedy(60, None))
    last = None
    while core.has_unfinished_requests():
        for output in core.step():
            last = output
    assert last is not None
    last.prompt_token_ids = tokens
    assert difference(last, folder, SINKS) < 1e-4


@pytest.mark.parametrize(
    ("field", "settings"),
    [
        ("prompt_embeds", {}),
        ("thinking_token_budget", {"thinking_token_budget": 5}),
        (
            "repetition_detection",
            {
                "repetition_detection": RepetitionDetectionParams(
                    max_pattern_size=30, min_pattern_size=1, min_count=3
                )
            },
        ),
        ("prompt_logprob_token_ids", {"prompt_logprob_token_ids": [[9]] * 199}),
        ("trace_decode_token_ids", {"trace_decode_token_ids": [9] * 400}),
    ],
)
def test_refused_for_what_may_roll(folder: Path, llm: Any, field: str, settings: Any) -> None:
    """By the name of the field; a request without it is then served."""
    prompt: dict[str, Any] = {"prompt_token_ids": random_tokens(200)}
    if field == "prompt_embeds":
        table = load_file(folder / "model.safetensors")["model.embed_tokens.weight"]
        prompt = {"prompt_embeds": table[torch.tensor(random_tokens(60))]}
    with pytest.raises((VLLMValidationError, ValueError), match=field):
        llm.llm_engine.add_request("refused", prompt, greedy(400, **settings))
    assert len(said(run(llm, {"next": (random_tokens(9), greedy(3))})["next"])) == 3


def test_a_budget_of_thoughts_within_a_segment(llm: Any) -> None:
    """The end-of-thinking token comes once the budget is spent."""
    thoughts = [llm.get_tokenizer().convert_tokens_to_ids("<|system|>")]
    end = llm.get_tokenizer().convert_tokens_to_ids("<|end|>")
    params = greedy(30, None, thinking_token_budget=5)
    output = run(llm, {"a": ([*random_tokens(9), *thoughts], params)})["a"]
    assert end in said(output)[:8]
    assert len(said(output)) == 30 < SEGMENT
