"""``AsyncLLM``, its engine in a process of its own: tasks cancelled at any moment."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext
from pathlib import Path
from random import Random
from typing import Any

import pytest
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.engine.protocol import StreamingInput
from vllm.exceptions import VLLMValidationError
from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.metrics.loggers import StatLoggerBase

from tests.e2e.ahead import ahead_by_default
from tests.e2e.engines import greedy, prompt, random_tokens, tiny
from tests.e2e.streams import BLOCK, SEGMENT, SINKS, WINDOW
from vllm_sink.metrics.front_end import FRONT_END
from vllm_sink.plugin import register
from vllm_sink.streaming import output_trimming, slow_client_abort


class LastStats(StatLoggerBase):
    """The scheduler's latest statistics."""

    usage: float | None = None
    rollovers = 0

    def __init__(self, vllm_config: Any, engine_index: int = 0) -> None: ...

    def record(self, scheduler_stats: Any, *args: Any, **kwargs: Any) -> None:
        if scheduler_stats is not None:
            LastStats.usage = scheduler_stats.kv_cache_usage
            if scheduler_stats.sink_stats is not None:
                LastStats.rollovers += len(scheduler_stats.sink_stats.rollovers)

    def log_engine_initialized(self) -> None: ...


@asynccontextmanager
async def async_engine(folder: Path, ahead: bool, **settings: Any) -> AsyncIterator[AsyncLLM]:
    register()
    policy = {"sink_tokens": SINKS, "window_tokens": WINDOW, "segment_tokens": SEGMENT}
    with ahead_by_default() if ahead else nullcontext():
        config = AsyncEngineArgs(
            str(folder),
            dtype="float32",
            enforce_eager=True,
            block_size=BLOCK,
            max_num_batched_tokens=64,
            max_num_seqs=8,
            additional_config={"kv_policy": {"name": "sink", **policy}},
            **settings,
        ).create_engine_config()
    if ahead:
        config.parallel_config.worker_cls = "tests.e2e.ahead_worker.AheadWorker"
    LastStats.usage, LastStats.rollovers = None, 0
    engine = AsyncLLM.from_vllm_config(config, stat_loggers=[LastStats])
    try:
        yield engine
    finally:
        engine.shutdown()


def streamed(count: int, sinks: int = SINKS) -> Any:
    params = greedy(count, sinks)
    params.output_kind = RequestOutputKind.DELTA
    return params


async def follow(engine: AsyncLLM, name: str, tokens: list[int], params: Any) -> list[int]:
    said: list[int] = []
    async for output in engine.generate(prompt(tokens), params, name):
        said += output.outputs[0].token_ids
    return said


async def nothing_is_held(engine: AsyncLLM) -> bool:
    """vLLM resets its prefix cache only if no block of it is in use."""
    for _ in range(100):
        if await engine.reset_prefix_cache():
            return True
        await asyncio.sleep(0.05)
    return False


def test_a_client_that_does_not_read_is_let_go(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It gets what was waiting and the reason; others notice nothing. An endless answer that is not
    streamed ends the same way.
    """
    # A thousand tokens fill what a stream may leave unsent.
    monkeypatch.setattr(slow_client_abort, "TOKEN", (16 << 20) // 1000)
    monkeypatch.setattr(output_trimming, "KEEP", 20)
    monkeypatch.setattr(output_trimming, "EVERY", 50)
    ended = FRONT_END.ended_unsent

    async def scenario() -> None:
        async with async_engine(tiny("llama-gqa", tiny_folder), False) as engine:
            whole = greedy(900, SINKS)
            whole.output_kind = RequestOutputKind.FINAL_ONLY
            reader = asyncio.create_task(follow(engine, "reader", random_tokens(9), streamed(1400)))
            patient = asyncio.create_task(follow(engine, "whole", random_tokens(9), whole))
            stream = engine.generate(prompt(random_tokens(9)), streamed(10**9), "stalled")
            said = (await anext(stream)).outputs[0].token_ids[:]
            # Alone in the end, and its client does not read.
            expected = await reader
            assert await patient == expected[:900]
            # Not streamed, and endless.
            endless = greedy(10**9, SINKS)
            endless.output_kind = RequestOutputKind.FINAL_ONLY
            cut = await follow(engine, "endless", random_tokens(9), endless)
            assert 900 < len(cut) < 1100
            assert cut == expected[: len(cut)]
            for _ in range(600):
                if not engine.output_processor.request_states:
                    break
                await asyncio.sleep(0.1)
            assert not engine.output_processor.request_states
            assert await nothing_is_held(engine)
            async for output in stream:
                said += output.outputs[0].token_ids
                reason = output.outputs[0].finish_reason
            assert reason == "abort"
            assert 900 < len(said) < 1100
            assert FRONT_END.ended_unsent - ended == 2
            assert said == expected[: len(said)]

    asyncio.run(scenario())


async def churn(engine: AsyncLLM, rng: Random, over: asyncio.Event) -> int:
    """One client after the other, each of which may disconnect at any moment."""
    left = 0
    while not over.is_set():
        tokens = random_tokens(rng.randint(2, 3 * SEGMENT), seed=rng.randint(0, 9))
        params = streamed(rng.choice([5, 400, 10**9]), rng.choice([0, 1]))
        task = asyncio.create_task(follow(engine, f"x{rng.random()}", tokens, params))
        done, _ = await asyncio.wait([task], timeout=rng.choice([0, 0.001, rng.random()]))
        if not done:
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            left += 1
        await asyncio.sleep(0.01)
    return left


@pytest.mark.parametrize("ahead", [False, True])
def test_tasks_cancelled_at_any_moment(tiny_folder: Path, ahead: bool) -> None:
    """No block leaks, and no other stream's output changes."""

    async def main() -> None:
        folder = tiny("llama-gqa", tiny_folder)
        async with async_engine(folder, ahead) as engine:
            assert engine.vllm_config.scheduler_config.async_scheduling == ahead
            lasting = {f"a{i}": (random_tokens(20 + 150 * i, seed=i), 700) for i in range(2)}
            alone = {
                name: await follow(engine, name, tokens, streamed(count))
                for name, (tokens, count) in lasting.items()
            }
            assert await nothing_is_held(engine)
            over = asyncio.Event()
            clients = [asyncio.create_task(churn(engine, Random(i), over)) for i in range(5)]
            beside = await asyncio.gather(
                *(follow(engine, n, t, streamed(c)) for n, (t, c) in lasting.items())
            )
            over.set()
            left = sum(await asyncio.gather(*clients))
            assert await nothing_is_held(engine)
            await follow(engine, "last", random_tokens(9), streamed(3))
        assert LastStats.usage == 0
        assert dict(zip(lasting, beside, strict=True)) == alone
        assert LastStats.rollovers > 50
        assert left > 30

    asyncio.run(main())


def test_streaming_input_is_refused(tiny_folder: Path) -> None:
    """At its first piece, by name; the engine continues."""

    async def pieces() -> AsyncIterator[StreamingInput]:
        for i in range(3):
            yield StreamingInput(prompt=prompt(random_tokens(20, seed=i)))

    async def main() -> None:
        async with async_engine(tiny("llama-gqa", tiny_folder), ahead=False) as engine:
            with pytest.raises(VLLMValidationError, match="streaming input"):
                async for _ in engine.generate(pieces(), streamed(5), "session"):
                    pass
            assert len(await follow(engine, "next", random_tokens(9), streamed(3))) == 3
            assert await nothing_is_held(engine)

    asyncio.run(main())
