"""Every claimed architecture, compared with the reference token by token, in float32."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from tests.e2e.engines import (
    assert_equal_the_reference,
    engine,
    greedy,
    logprobs,
    prompt,
    random_tokens,
    reference_logprobs,
    tiny,
)
from tests.models.recipes import ARCHITECTURES
from vllm_sink.startup.models import MODELS

CLAIMED = [name for name, recipe in ARCHITECTURES.items() if recipe.vllm != "removed"]

#: W, and the S of requests that run side by side: none, one, not a multiple of the block (16),
#: more than a block; a window smaller than a block, and one of a single token.
WINDOWS = {30: (0, 5, 20), 7: (0, 1, 17), 1: (0, 1, 4)}


#: One of each kind of position and of layers: these do with every window, the others with the first
#: unless slow tests run too.
KINDS = {"llama-gqa", "gptj", "gpt-neox", "gemma3", "falcon-alibi"}

CASES = [
    pytest.param(a, w, marks=[] if w == 30 or a in KINDS else pytest.mark.slow)
    for w in WINDOWS
    for a in CLAIMED
]


def test_every_supported_architecture_is_held_here() -> None:
    """By the names that Transformers writes into the configs of the models held below."""
    held = {AutoModelForCausalLM._model_mapping[ARCHITECTURES[a].config_class] for a in CLAIMED}
    # RWForCausalLM is Falcon's name before Transformers had it.
    assert {architecture.__name__ for architecture in held} == set(MODELS) - {"RWForCausalLM"}


@pytest.mark.parametrize(("arch", "window"), CASES)
def test_logprobs_equal_the_reference(arch: str, window: int, tiny_folder: Path) -> None:
    folder = tiny(arch, tiny_folder)
    sinks = WINDOWS[window]
    tokens = random_tokens(6 * (max(sinks) + window) + 5)
    with engine(folder, window) as llm:
        outputs = llm.generate(
            [prompt(tokens)] * len(sinks),
            [greedy(12, s, prompt_logprobs=0) for s in sinks],
            use_tqdm=False,
        )
    assert_equal_the_reference(outputs, folder, sinks, window, bound=1e-4)


def test_the_comparison_can_see(tiny_folder: Path) -> None:
    """The reference with S or W off by one is far from what was served."""
    folder = tiny("llama-gqa", tiny_folder)
    tokens = random_tokens(200)
    with engine(folder, 30) as llm:
        (output,) = llm.generate(prompt(tokens), greedy(1, prompt_logprobs=0), use_tqdm=False)
    every = [*tokens, *output.outputs[0].token_ids]
    for wrong in ((4, 29), (4, 31), (3, 30), (5, 30)):
        difference = (logprobs(output) - reference_logprobs(folder, *wrong, every)).abs()
        assert difference.max() > 1e-2, wrong
