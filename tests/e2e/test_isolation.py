"""A request that the engine core cannot accept ends alone, and leaves nothing behind."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from vllm import SamplingParams
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine.async_llm import AsyncLLM

from tests.e2e.engines import prompt, random_tokens, tiny

#: The length of a prompt at which the scheduler below fails.
UNLUCKY = 13


#: A plugin of vLLM's, which it loads in every process: there the scheduler has a fault.
PLUGIN = f"""
def register():
    from vllm_sink.engine.scheduler import StreamScheduling

    opened = StreamScheduling._open

    def open_or_choke(self, request):
        opened(self, request)
        if request.num_prompt_tokens == {UNLUCKY}:
            raise RuntimeError("a fault of this scheduler's")

    StreamScheduling._open = open_or_choke
"""


@pytest.fixture
def choking(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The engine in a process of its own, whose scheduler has a fault."""
    (tmp_path / "choking.py").write_text(PLUGIN)
    installed = tmp_path / "choking-1.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: choking\nVersion: 1\n")
    (installed / "entry_points.txt").write_text("[vllm.general_plugins]\nx = choking:register\n")
    monkeypatch.syspath_prepend(tmp_path)  # a spawned process starts with its parent's path
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "1")


def test_it_ends_alone(choking: None, tiny_folder: Path) -> None:
    said, failures = asyncio.run(_beside(tiny("llama-gqa", tiny_folder)))
    assert len(failures) == 3
    assert said[0] == said[1]
    assert len(said[0]) == 150


async def _beside(folder: Path) -> tuple[list[list[int]], list[str]]:
    """A stream's output alone and beside three requests that fail; and their errors."""
    args = AsyncEngineArgs(
        str(folder),
        dtype="float32",
        enforce_eager=True,
        max_num_batched_tokens=64,
        max_num_seqs=4,
        additional_config={"kv_policy": {"name": "sink", "window_tokens": 60}},
    )
    engine = AsyncLLM.from_engine_args(args)
    try:
        alone = await _say(engine, "alone", 30, 150)
        stream = asyncio.ensure_future(_say(engine, "beside", 30, 150))
        failures = []
        for i in range(3):
            try:
                said = await _say(engine, f"unlucky {i}", UNLUCKY, 5)
                failures.append("" if said else "error")
            except Exception as error:
                failures.append(repr(error))
        return [alone, await stream], [failure for failure in failures if failure]
    finally:
        engine.shutdown()


async def _say(engine: AsyncLLM, name: str, length: int, count: int) -> list[int]:
    params = SamplingParams(
        max_tokens=count, temperature=0, ignore_eos=True, output_kind=RequestOutputKind.DELTA
    )
    said: list[int] = []
    async for output in engine.generate(prompt(random_tokens(length)), params, name):
        if output.outputs[0].finish_reason == "error":
            return []
        said += output.outputs[0].token_ids
    return said
