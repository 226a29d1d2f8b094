"""Run by test_reads.py, on CPU and GPU: streams that roll, in a process that records.

    python -m tests.compat.record FOLDER RUN…

RUN is one of ``RUNS``; prints what no hook lists, and what was wrapped.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import torch
from vllm.sampling_params import RequestOutputKind

from tests.compat.recorder import Recorder
from tests.e2e.ahead import one_step_ahead
from tests.e2e.engines import greedy, prompt, random_tokens, scheduler_of
from tests.e2e.servers import Server, free_port, until
from tests.e2e.streams import SAMPLING, SEGMENT, rolling, run, sampled
from tests.e2e.test_async_engine import async_engine, follow, nothing_is_held, streamed
from vllm_sink.compat import install
from vllm_sink.plugin import register
from vllm_sink.streaming import output_trimming, slow_client_abort

RUNS = ("engine", "ahead", "async", "server")
GPU: dict[str, Any] = {"kv_cache_memory_bytes": 64 << 20, "gpu_memory_utilization": 0.05}


#: Ways to sample that depend on earlier tokens.
PENALTIES = ("presence", "frequency", "repetition", "bad words")


def engine(recorder: Recorder, folder: Path) -> None:
    """All that a stream may request, on this machine's own model runner."""
    settings = GPU if torch.cuda.is_available() else {}
    # Statistics are sent.
    with rolling(folder, disable_log_stats=False, **settings) as llm:
        recorder.install()
        core, scheduler = llm.llm_engine, scheduler_of(llm)
        long = random_tokens(5 * SEGMENT)
        ways = {
            **{name: SAMPLING[name].clone() for name in PENALTIES},
            "fed, penalties": sampled(repetition_penalty=1.3),
            "fed, min_tokens": sampled(min_tokens=150),
            "fed, sinks": greedy(200, 20),
            **{kind.name: sampled(output_kind=kind, logprobs=0) for kind in RequestOutputKind},
        }
        for params in ways.values():
            params.max_tokens = 200
        run(llm, {n: (long if n.startswith("fed") else long[:50], p) for n, p in ways.items()})
        text = random_tokens(SEGMENT - 30)
        for name in ("first", "again"):
            run(llm, {name: ([*text, *random_tokens(20, seed=len(name))], greedy(60))})
        core.add_request("preempted", prompt(random_tokens(50)), greedy(300))
        for _ in range(200):
            core.step()
        assert scheduler.reset_prefix_cache(reset_running_requests=True)
        while core.has_unfinished_requests():
            core.step()
        core.add_request("left", prompt(long), greedy(400))
        for _ in range(20):
            core.step()
        core.abort_request(["left"])
        assert scheduler.rollovers > 30
        assert scheduler.restarts == 1


def ahead(recorder: Recorder, folder: Path) -> None:
    """The same with vLLM's asynchronous scheduler, which is the default on a GPU."""
    with one_step_ahead():
        engine(recorder, folder)


def asynchronous(recorder: Recorder, folder: Path) -> None:
    """The front end of an engine in another process."""

    async def scenario() -> None:
        async with async_engine(folder, False) as engine:
            recorder.install()
            reader = asyncio.create_task(follow(engine, "r", random_tokens(9), streamed(900)))
            stream = engine.generate(prompt(random_tokens(9)), streamed(10**9), "stalled")
            await anext(stream)
            await reader
            while engine.output_processor.request_states:
                await asyncio.sleep(0.1)
            async for _ in stream:
                pass
            assert await nothing_is_held(engine)

    asyncio.run(scenario())


#: Flags of the server: everything that this package reads.
FLAGS = (
    "--kv-policy sink --sink-tokens system --window-tokens 60 --segment-tokens 256 "
    "--served-model-name tiny --dtype float32 --enforce-eager --max-num-seqs 8 "
    "--max-num-batched-tokens 128 --sink-tenant-label user --sink-tenant-max-streams 3 "
    "--shutdown-timeout 6"
)
CHAT = {
    "model": "tiny",
    "messages": [{"role": "system", "content": "abc"}, {"role": "user", "content": "d"}],
    "max_tokens": 40,
    "user": "somebody",
}
TEXT = {"model": "tiny", "prompt": random_tokens(30), "max_tokens": 5}


def ask(url: str, told: list[int]) -> None:
    """A client of the server in this process; stops the server at the end."""
    server = Server(url, Path(os.devnull))
    try:
        until(lambda: _answers(server), 300)
        list(server.stream("/v1/chat/completions", {**CHAT, "ignore_eos": True}))
        for body in (CHAT, {**CHAT, "use_beam_search": True, "n": 2, "max_tokens": 3}):
            told.append(server.post("/v1/chat/completions", body)[0])
        for more in ({"n": 2}, {"n": 9, "user": "somebody"}, {"vllm_xargs": {"sink_tokens": -1}}):
            told.append(server.post("/v1/completions", {**TEXT, **more})[0])
    finally:
        os.kill(os.getpid(), signal.SIGTERM)


def _answers(server: Server) -> bool:
    try:
        return server.post("/v1/completions", TEXT)[0] == 200
    except OSError:
        return False


def served(recorder: Recorder, folder: Path) -> None:
    """``vllm serve`` in this process, as its command runs it."""
    from vllm.entrypoints.cli.main import main

    port, told = free_port(), list[int]()
    client = threading.Thread(target=ask, args=(f"http://127.0.0.1:{port}", told))
    import vllm.entrypoints.openai.api_server  # noqa: F401  # before classes are looked for

    recorder.install()
    sys.argv = ["vllm", "serve", str(folder), "--host", "127.0.0.1", "--port", str(port)]
    sys.argv += FLAGS.split()
    client.start()
    try:
        main()
    finally:
        client.join()
    assert told == [200, 200, 200, 429, 400]


def recorded(folder: Path, *runs: str) -> dict[str, Any]:
    """Do this in a process of its own; returns what it recorded.

    Returns:
        ``unlisted``: attributes that no hook lists, and where they are asked for; ``read``: hooks
        that were read; ``wrapped``: what was wrapped.
    """
    done = subprocess.run(
        [sys.executable, "-m", "tests.compat.record", str(folder), *runs],
        env={**os.environ, "TORCHDYNAMO_DISABLE": "1"},  # it would trace the recorder
        capture_output=True,
        text=True,
        check=False,
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("RECORDED ")]
    assert len(lines) == 1, f"{done.stdout[-2000:]}\n{done.stderr[-5000:]}"
    found: dict[str, Any] = json.loads(lines[0].removeprefix("RECORDED "))
    return found


def main() -> None:
    recorder, folder = Recorder(), Path(sys.argv[1])
    output_trimming.KEEP, output_trimming.EVERY, slow_client_abort.TOKEN = 20, 50, 1 << 16
    register()
    recorder.install()
    by_name = dict(zip(RUNS, (engine, ahead, asynchronous, served), strict=True))
    for name in sys.argv[2:]:
        by_name[name](recorder, folder)
    result = {
        "unlisted": recorder.unlisted(),
        "read": recorder.read(),
        "wrapped": sorted(install.INSTALLED),
    }
    print("RECORDED", json.dumps(result), flush=True)
    os._exit(0)  # servers leave threads


if __name__ == "__main__":
    main()
