"""Rollovers under asynchronous scheduling, for the V2 runner, without a GPU.

vLLM's real ``AsyncScheduler`` with streams, one step ahead of a shadow of the runner
(``schedulers.py``).
"""

from __future__ import annotations

from collections import deque
from pathlib import Path
from random import Random
from typing import Any

import pytest
from vllm.v1.request import RequestStatus

from tests.e2e.engines import tiny
from tests.property.schedulers import ShadowRunner, make_request, make_scheduler


@pytest.mark.parametrize("ahead", [True, False])
@pytest.mark.parametrize("seed", range(4))
def test_a_step_ahead(seed: int, ahead: bool, tiny_folder: Path) -> None:
    rng = Random(seed)
    scheduler = make_scheduler(tiny("llama-gqa", tiny_folder), ahead)
    runner, queue = ShadowRunner(rng), deque[Any]()
    free = scheduler.kv_cache_manager.block_pool.get_num_free_blocks
    total, wanted, said = free(), dict[str, int](), dict[str, int]()
    steps = aborted = 0
    while steps < 1500 or scheduler.has_unfinished_requests() or queue:
        steps += 1
        assert steps < 20_000, "the scheduler does not come to rest"
        if steps < 1500 and len(scheduler.requests) < 5 and rng.random() < 0.3:
            name, count = f"r{steps}", rng.choice([1, 5, 60, 400])
            prompt = [rng.randrange(256) for _ in range(rng.choice([1, 30, 64, 65, 71, 72, 300]))]
            scheduler.add_request(make_request(name, prompt, count))
            wanted[name], said[name] = count, 0
        if rng.random() < 0.003 and scheduler.requests:
            name = rng.choice(sorted(scheduler.requests))
            scheduler.finish_requests(name, RequestStatus.FINISHED_ABORTED)
            del wanted[name]
            aborted += 1
        if rng.random() < 0.005:
            scheduler.reset_prefix_cache(reset_running_requests=True)
        if scheduler.has_requests():
            output = scheduler.schedule()
            queue.append((output, runner.step(output)))
        if len(queue) > ahead or (queue and not scheduler.has_requests()):
            for outputs in scheduler.update_from_output(*queue.popleft()).values():
                for one in outputs.outputs:
                    said[one.request_id] += len(one.new_token_ids)
    assert {name: said[name] for name in wanted} == wanted
    assert free() == total
    assert not scheduler.manager.streams
    assert not scheduler._waiting_prompts
    assert runner.rolled > 100
    assert scheduler.rollovers >= runner.rolled
    assert aborted
    assert 400 in wanted.values()
    assert scheduler.restarts
