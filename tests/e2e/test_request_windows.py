"""``window_tokens`` of a request: every token equals the reference's, in one batch with others."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from vllm.exceptions import VLLMValidationError

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

WINDOWS = (1, 7, 30, 200)
SINKS = (0, 4, 40)
EVERY = [(sinks, window) for sinks in SINKS for window in WINDOWS]
#: The engine's own window: a request that names it is one that names none.
MOST = max(WINDOWS)


def _longer(arch: str, root: Path) -> Path:
    """A tiny model whose context holds the largest of these."""
    folder = root / f"{arch}-longer"
    if not folder.exists():
        shutil.copytree(tiny(arch, root), folder)
        path = folder / "config.json"
        config = json.loads(path.read_text())
        config["max_position_embeddings"] = 512
        path.write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize(
    "arch", ["llama-gqa", "gemma3", pytest.param("falcon-alibi", marks=pytest.mark.slow)]
)
def test_every_window_in_one_batch(arch: str, tiny_folder: Path) -> None:
    """Prefill in chunks and decode, in batches of twelve kinds of requests."""
    folder = _longer(arch, tiny_folder)
    texts = [random_tokens(260 + 7 * i, seed=i) for i in range(len(EVERY))]
    with engine(folder, MOST, max_num_batched_tokens=192, max_num_seqs=16) as llm:
        outputs = llm.generate(
            [prompt(text) for text in texts],
            [greedy(12, *kept, prompt_logprobs=0) for kept in EVERY],
            use_tqdm=False,
        )
    for (sinks, window), text, output in zip(EVERY, texts, outputs, strict=True):
        every = [*text, *output.outputs[0].token_ids]
        right = reference_logprobs(folder, sinks, window, every)
        assert (logprobs(output) - right).abs().max() < 1e-4, (sinks, window)


def test_windows_share_what_is_equal_and_nothing_more(tiny_folder: Path) -> None:
    """One text under twelve policies, twice: most of it is cached, and none of it is another's."""
    folder = _longer("llama-gqa", tiny_folder)
    text = random_tokens(280)
    cached = 0
    with engine(folder, MOST) as llm:
        for sinks, window in [*EVERY, *EVERY[::-1]]:
            params = greedy(24, sinks, window)
            (output,) = llm.generate(prompt(text), params, use_tqdm=False)
            cached += output.num_cached_tokens
            answer = output.outputs[0]
            told = torch.tensor(
                [s[t].logprob for s, t in zip(answer.logprobs, answer.token_ids, strict=True)]
            )
            right = reference_logprobs(folder, sinks, window, [*text, *answer.token_ids])
            assert (told - right[-24:]).abs().max() < 1e-4, (sinks, window)
    assert cached > len(EVERY) * len(text) * 3 // 4


def test_a_small_window_holds_few_blocks(tiny_folder: Path) -> None:
    """And as many such streams fit as their windows allow."""
    folder = _longer("llama-gqa", tiny_folder)
    with engine(folder, MOST, block_size=16) as llm:
        scheduler = scheduler_of(llm)
        core = llm.llm_engine
        for name, window in (("small", 16), ("large", MOST)):
            core.add_request(name, prompt(random_tokens(300)), greedy(40, 4, window))
        held: dict[str, int] = {}
        while core.has_unfinished_requests():
            core.step()
            for request_id, stream in scheduler.manager.streams.items():
                name = request_id.split("-")[0]
                held[name] = stream.held
        assert held["small"] <= 1 + 3
        assert held["large"] >= MOST // 16


@pytest.mark.parametrize(
    ("window", "told"),
    [
        (0, "an integer of at least 1"),
        (-3, "an integer of at least 1"),
        ("30", "an integer of at least 1"),
        (1.5, "an integer of at least 1"),
        (True, "an integer of at least 1"),
        (MOST + 1, f"1 to {MOST}"),
    ],
)
def test_what_is_no_window_is_refused(window: Any, told: str, tiny_folder: Path) -> None:
    folder = _longer("llama-gqa", tiny_folder)
    with (
        engine(folder, MOST) as llm,
        pytest.raises(VLLMValidationError, match=rf"window_tokens.*{told}"),
    ):
        llm.generate(prompt(random_tokens(20)), greedy(12, 0, window), use_tqdm=False)
