"""``--kv-policy window`` is the policy without sinks; ``full`` is vLLM unchanged."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e.engines import (
    engine,
    greedy,
    logprobs,
    prompt,
    random_tokens,
    reference_logprobs,
    tiny,
)


@pytest.mark.parametrize("arch", ["llama-gqa", "falcon-alibi"])
def test_window_has_no_sinks(arch: str, tiny_folder: Path) -> None:
    folder = tiny(arch, tiny_folder)
    tokens = random_tokens(250)
    config = {"kv_policy": {"name": "window", "window_tokens": 30}}
    with engine(folder, None, additional_config=config, block_size=16) as llm:
        (output,) = llm.generate(prompt(tokens), greedy(9, prompt_logprobs=0), use_tqdm=False)
    every = [*tokens, *output.outputs[0].token_ids]
    assert (logprobs(output) - reference_logprobs(folder, 0, 30, every)).abs().max() < 1e-4


def test_full_is_untouched_after_an_engine_with_a_policy(tiny_folder: Path) -> None:
    """The stock backend, worker and scheduler, also in a process that had an engine with sinks."""
    folder = tiny("llama-gqa", tiny_folder)
    tokens = random_tokens(100)
    said = []
    for config in (None, {"kv_policy": {"name": "full"}}):
        with engine(folder, 30) as llm:
            llm.generate(prompt(tokens), greedy(3), use_tqdm=False)
        settings = {} if config is None else {"additional_config": config}
        with engine(folder, None, max_model_len=128, **settings) as llm:
            vllm_config = llm.llm_engine.vllm_config
            assert vllm_config.parallel_config.worker_cls == "vllm.v1.worker.cpu_worker.CPUWorker"
            assert vllm_config.scheduler_config.scheduler_cls is None
            assert vllm_config.additional_config == {}
            layers = vllm_config.compilation_config.static_forward_context.values()
            assert {layer.get_attn_backend().get_name() for layer in layers} == {"CPU_ATTN"}
            (output,) = llm.generate(prompt(tokens), greedy(20), use_tqdm=False)
            said.append(output.outputs[0].token_ids)
    assert said[0] == said[1]
