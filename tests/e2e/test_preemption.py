"""Other requests give blocks back to streams and are computed again: no token changes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.e2e.engines import greedy, prompt, random_tokens, scheduler_of, tiny
from tests.e2e.streams import difference, rolling
from vllm_sink.requests.core_request import server_fields


@pytest.mark.parametrize("ahead", [False, True])
def test_streams_and_others_equal_the_reference(ahead: bool, tiny_folder: Path) -> None:
    """A pool too small for all: two streams arrive late, and other requests lose their blocks."""
    folder = tiny("llama-gqa", tiny_folder)
    sinks = {f"r{i}": 3 * i for i in range(8)} | {"s0": 4, "s1": 20}
    settings = {"num_gpu_blocks_override": 40, "max_num_seqs": 12, "async_scheduling": ahead}
    last: dict[str, Any] = {}
    preempted = {"stream": 0, "ordinary": 0}
    with rolling(folder, **settings) as llm:
        core, scheduler = llm.llm_engine, scheduler_of(llm)
        preempt = scheduler._preempt_request

        def counted(request: Any, *args: Any, **kwargs: Any) -> None:
            preempted["stream" if server_fields(request).stream else "ordinary"] += 1
            preempt(request, *args, **kwargs)

        scheduler._preempt_request = counted
        for i in range(8):
            tokens = random_tokens(24 + 6 * i, seed=i)
            core.add_request(f"r{i}", prompt(tokens), greedy(50, sinks[f"r{i}"]))
        steps = 0
        while core.has_unfinished_requests():
            if steps == 10:
                for name, count in (("s0", 400), ("s1", 300)):
                    tokens = random_tokens(60, seed=count)
                    core.add_request(name, prompt(tokens), greedy(count, sinks[name]))
            for output in core.step():
                last[output.request_id] = output
            steps += 1
        assert scheduler.rollovers
    assert preempted["ordinary"] >= 2
    assert preempted["stream"] == 0
    assert last.keys() == sinks.keys()
    for name, output in last.items():
        assert difference(output, folder, sinks[name]) < 1e-4, name
