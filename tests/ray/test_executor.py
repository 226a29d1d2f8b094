"""``--distributed-executor-backend ray``: vLLM's Ray executor, the plugin in its workers."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e.engines import engine, greedy, prompt, random_tokens, tiny
from tests.ray.cpu_devices import ray_with_devices

ray = pytest.importorskip("ray", reason="ray is not installed (the extra 'ray')")

pytestmark = pytest.mark.xdist_group("ray")

LENGTHS = (40, 90, 7)


def _greedy_tokens(folder: Path, **settings: object) -> tuple[str, list[list[int]]]:
    """The executor's name, and its answers to three prompts far past the context."""
    prompts = [prompt(random_tokens(n, seed=n)) for n in LENGTHS]
    with engine(folder, 60, **settings) as llm:
        executor = llm.llm_engine.engine_core.engine_core.model_executor
        outputs = llm.generate(prompts, greedy(200))
        return type(executor).__name__, [list(o.outputs[0].token_ids) for o in outputs]


def test_same_tokens_with_and_without(tiny_folder: Path) -> None:
    folder = tiny("llama-gqa", tiny_folder)
    _, expected = _greedy_tokens(folder)
    ray_with_devices(1)
    try:
        name, found = _greedy_tokens(folder, distributed_executor_backend="ray")
    finally:
        ray.shutdown()
    assert name == "RayExecutorV2"
    assert found == expected
