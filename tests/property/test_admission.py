"""Streams and other requests in one engine: each ends or is refused, and none harms another.

vLLM's real schedulers with a shadow of the runner, which checks that each token finds the keys of
all that it may see, also after a preemption (``schedulers.py``). Time is simulated.
"""

from __future__ import annotations

from collections import Counter, deque
from pathlib import Path
from random import Random
from typing import Any

import pytest
from vllm.v1.engine import FinishReason
from vllm.v1.request import RequestStatus

from tests.e2e.engines import tiny
from tests.property.schedulers import ShadowRunner, make_request, make_scheduler
from vllm_sink.engine import admission, waiting_queue
from vllm_sink.requests.core_request import server_fields
from vllm_sink.requests.refusal import Refusal, RefusedError

TIMEOUT = 40.0


class Clock:
    """A second for each step, or what a test sets."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(admission, "time", made)
    monkeypatch.setattr(waiting_queue, "time", made)
    return made


class Service:
    """An engine's scheduler, its runner, and what its clients receive."""

    def __init__(self, folder: Path, ahead: bool, rng: Random, **settings: Any) -> None:
        self.scheduler = make_scheduler(folder, ahead, **settings)
        self.ahead, self.rng = ahead, rng
        self.runner = ShadowRunner(rng)
        self.queue: deque[Any] = deque()
        self.total = self.free
        self.wanted: dict[str, int] = {}
        self.said: Counter[str] = Counter()
        self.told: dict[str, int] = {}
        self.counts: Counter[str] = Counter()
        self._watch()

    @property
    def free(self) -> int:
        free: int = self.scheduler.kv_cache_manager.block_pool.get_num_free_blocks()
        return free

    def _watch(self) -> None:
        preempt = self.scheduler._preempt_request

        def watched(request: Any, *args: Any, **kwargs: Any) -> None:
            kind = "stream" if server_fields(request).stream else "ordinary"
            self.counts[f"preempted {kind}"] += 1
            preempt(request, *args, **kwargs)

        self.scheduler._preempt_request = watched

    def add(self, name: str, prompt: int, count: int, arrival: float, **told: Any) -> None:
        tokens = [self.rng.randrange(256) for _ in range(prompt)]
        request = make_request(name, tokens, count, arrival, served=True, **told)
        try:
            self.scheduler.add_request(request)
        except RefusedError as error:
            self.scheduler.give_up(name)
            self.told[name] = error.refusal.status
            return
        self.wanted[name] = count

    def abort(self, name: str) -> None:
        self.scheduler.finish_requests(name, RequestStatus.FINISHED_ABORTED)
        self.wanted.pop(name)
        self.counts["aborted"] += 1

    def step(self) -> list[str]:
        """Schedule, run, and deliver; the requests that were scheduled."""
        scheduled: list[str] = []
        if self.scheduler.has_requests():
            output = self.scheduler.schedule()
            scheduled = list(output.num_scheduled_tokens)
            self.queue.append((output, self.runner.step(output)))
        if len(self.queue) > self.ahead or (self.queue and not self.scheduler.has_requests()):
            for outputs in self.scheduler.update_from_output(*self.queue.popleft()).values():
                for one in outputs.outputs:
                    self._hear(one)
        return scheduled

    def _hear(self, output: Any) -> None:
        self.said[output.request_id] += len(output.new_token_ids)
        refusal = Refusal.of(output)
        if refusal is not None:
            self.told[output.request_id] = refusal.status
            del self.wanted[output.request_id]
        elif output.finish_reason is not None:
            assert output.finish_reason == FinishReason.LENGTH

    @property
    def rests(self) -> bool:
        return not self.scheduler.has_unfinished_requests() and not self.queue

    def check(self) -> None:
        """The maintained sums equal the recomputed ones."""
        reservations, requests = self.scheduler.reservations, self.scheduler.requests
        assert (reservations.blocks, reservations.prompt_excess) == reservations.summed()
        assert reservations.held.keys() <= requests.keys()
        assert len(reservations.held) <= reservations.max_streams
        running = [server_fields(r).stream for r in self.scheduler.running]
        assert running == sorted(running, reverse=True), "streams come first"
        waits = {r.request_id for r in self.scheduler.waiting}
        assert len(self.scheduler.waiting) == len(waits)
        assert waits.isdisjoint(r.request_id for r in self.scheduler.running)
        assert requests.keys() == waits | {r.request_id for r in self.scheduler.running}

    def check_empty(self) -> None:
        """Nothing is left of any request."""
        scheduler = self.scheduler
        assert self.free == self.total
        assert not scheduler.reservations.held
        assert not scheduler.manager.streams
        assert not scheduler.requests
        assert not len(scheduler.waiting)
        assert not scheduler._waiting_prompts


def _random_run(seed: int, ahead: bool, folder: Path, clock: Clock, steps: int) -> Counter[str]:
    rng = Random(seed)
    clock.now = 0.0
    policy = rng.choice(["fcfs", "priority"])
    service = Service(
        folder,
        ahead,
        rng,
        pool=rng.randint(15, 30),
        admission={
            "queue_timeout": TIMEOUT,
            "stream_share": rng.choice([0.3, 0.8, 1.0]),
            "max_streams": rng.choice([None, 1, 3]),
        },
        max_num_seqs=rng.choice([4, 8, 16]),
        scheduling_policy=policy,
    )
    crowd = rng.choice([6, 20])
    step = 0
    while step < steps or not service.rests:
        step += 1
        clock.now += rng.choice([0.0, 0.1, 1.0])
        assert step < steps + 20_000, "the scheduler does not come to rest"
        if step < steps and len(service.scheduler.requests) < crowd and rng.random() < 0.4:
            long = rng.random() < 0.25
            prompt = rng.choice([1, 30, 64, 200]) if long else rng.randint(1, 50)
            count = (
                rng.choice([60, 300]) if long else rng.randint(1, 60 - prompt if prompt < 55 else 5)
            )
            service.add(f"r{step}", prompt, count, clock.now, tenant=rng.choice([None, "a", "b"]))
        if rng.random() < 0.01 and service.wanted:
            live = sorted(service.wanted.keys() & service.scheduler.requests.keys())
            if live:
                service.abort(rng.choice(live))
        service.step()
        service.check()
    service.check_empty()
    assert {name: service.said[name] for name in service.wanted} == service.wanted
    assert not service.counts["preempted stream"], (seed, policy)
    service.counts["steps"] = step
    service.counts["ended"] = len(service.wanted)
    service.counts.update(f"told {status}" for status in service.told.values())
    return service.counts


@pytest.mark.parametrize("ahead", [True, False])
@pytest.mark.parametrize("shard", range(4))
def test_everyone_ends_or_is_told(shard: int, ahead: bool, tiny_folder: Path, clock: Clock) -> None:
    """No leak, no stream preempted, every token with the keys of all that it may see."""
    folder = tiny("llama-gqa", tiny_folder)
    counts = Counter[str]()
    for seed in range(10 * shard, 10 * shard + 10):
        counts += _random_run(seed, ahead, folder, clock, 800)
    assert counts["steps"] > 8_000
    for event in ("ended", "preempted ordinary", "aborted", "told 429", "told 503"):
        assert counts[event] > 10, event


@pytest.mark.slow
@pytest.mark.parametrize("ahead", [True, False])
def test_everyone_ends_or_is_told_in_100_000_schedules(
    ahead: bool, tiny_folder: Path, clock: Clock
) -> None:
    folder = tiny("llama-gqa", tiny_folder)
    counts = Counter[str]()
    seed = 1000
    while counts["steps"] < 50_000 or counts["preempted ordinary"] < 5_000:
        counts += _random_run(seed, ahead, folder, clock, 2000)
        seed += 1
    print(dict(counts), "seeds", seed - 1000)


# -- by hand --------------------------------------------------------------------------------------


def _service(folder: Path, **settings: Any) -> Service:
    settings.setdefault("pool", 21)
    return Service(folder, False, Random(0), **settings)


def test_what_fits_passes_what_does_not(tiny_folder: Path, clock: Clock) -> None:
    """A request at the queue's head that waits for a stream's blocks delays no other."""
    service = _service(tiny("llama-gqa", tiny_folder), pool=12, admission={"stream_share": 1.0})
    service.add("endless", 30, 5000, 0.0)
    for _ in range(20):
        service.step()
    assert service.free < 10
    for i in range(200):
        service.add(f"large{i}", 60, 4, 0.0)
    # Larger than what is left beside the stream; it can only ever be told.
    assert set(service.step()) == {"endless"}
    service.add("small", 4, 4, 0.0)
    steps = 0
    while service.said["small"] < 4:
        service.step()
        steps += 1
    assert steps <= 5
    assert not service.counts["preempted stream"]


def test_who_is_passed_for_long_preempts_the_younger(tiny_folder: Path, clock: Clock) -> None:
    service = _service(tiny("llama-gqa", tiny_folder), pool=14, max_num_seqs=16)
    service.add("old", 8, 50, 0.0)
    for _ in range(20):
        service.step()
    assert service.free == 9  # beside the old one there is room for the large one and no more
    service.add("first", 9, 9, 0.5)
    service.step()
    clock.now = 1.0
    service.add("large", 60, 1, clock.now)
    passed = came = 0
    while service.said["large"] == 0:
        clock.now += 0.5
        came += 1
        service.add(f"young{came}", 2, 5, clock.now)
        passed += service.step().count(f"young{came}")
        assert clock.now < TIMEOUT
    assert passed > 10
    assert service.counts["preempted ordinary"]
    while not service.rests:
        service.step()
    assert {name: service.said[name] for name in service.wanted} == service.wanted


def test_a_stream_takes_back_what_was_promised(tiny_folder: Path, clock: Clock) -> None:
    """Others may use reserved blocks until then; they are recomputed, and lose nothing."""
    service = _service(tiny("llama-gqa", tiny_folder), pool=20, max_num_seqs=16)
    for i in range(8):
        service.add(f"r{i}", 12, 40, 0.0)
    for _ in range(12):
        service.step()
    assert service.free < 4
    service.add("endless", 40, 400, 1.0)
    assert "endless" in service.step()
    assert service.counts["preempted ordinary"]
    while not service.rests:
        service.step()
    assert {name: service.said[name] for name in service.wanted} == service.wanted
    assert not service.counts["preempted stream"]


def test_a_stream_that_waits_for_another_holds_up_nobody(tiny_folder: Path, clock: Clock) -> None:
    """Another stream's prompt takes its room for some steps; small requests continue."""
    service = _service(
        tiny("llama-gqa", tiny_folder), pool=17, max_num_seqs=8, admission={"stream_share": 1.0}
    )
    service.add("first", 600, 400, 0.0)
    for _ in range(4):
        service.step()
    service.add("second", 60, 400, 1.0)
    service.step()
    assert "second" in {r.request_id for r in service.scheduler.waiting}
    service.add("small", 4, 4, 2.0)
    for _ in range(30):  # the first one's prompt takes all of 19 steps
        service.step()
    assert service.said["small"] == 4
    while not service.rests:
        service.step()
    assert {name: service.said[name] for name in service.wanted} == service.wanted
    assert not service.counts["preempted stream"]


def test_one_stream_too_many_is_told_what_is_free(tiny_folder: Path, clock: Clock) -> None:
    service = _service(tiny("llama-gqa", tiny_folder), pool=21)
    reservation = service.scheduler._reservation(service.scheduler.kv_policy.default, 4, 5000)
    fit = service.scheduler.reservations.streams_that_fit(reservation)
    for i in range(fit):
        service.add(f"s{i}", 4, 5000, 0.0)
    assert not service.told
    with pytest.raises(RefusedError) as refused:
        service.scheduler.add_request(make_request("more", [1] * 4, 5000, served=True))
    refusal = refused.value.refusal
    assert (refusal.status, refusal.retry_after) == (429, admission.AFTER_STREAMS)
    assert f"{fit} streams are live" in refusal.message
    assert "--sink-stream-share 0.8 of 20" in refusal.message
    # From Python it waits for its turn.
    service.scheduler.add_request(make_request("patient", [1] * 4, 5000))
    service.step()
    assert "patient" in {r.request_id for r in service.scheduler.waiting}
    service.abort("s0")
    service.step()
    assert "patient" in {r.request_id for r in service.scheduler.running}


def test_tenants_take_turns(tiny_folder: Path, clock: Clock) -> None:
    """One tenant's thousand requests do not delay another's single one."""
    service = _service(tiny("llama-gqa", tiny_folder), max_num_seqs=2)
    for i in range(1000):
        service.add(f"flood{i}", 8, 2, 0.0, tenant="flood")
    service.step()
    service.add("one", 8, 2, 0.0, tenant="other")
    before = sum(service.said[f"flood{i}"] > 0 for i in range(1000))
    while service.said["one"] < 2:
        service.step()
    after = sum(service.said[f"flood{i}"] > 0 for i in range(1000))
    assert after - before <= 6


def test_many_who_wait_are_not_looked_at(tiny_folder: Path, clock: Clock) -> None:
    """A step rarely looks up cached blocks of requests that do not fit."""
    service = _service(tiny("llama-gqa", tiny_folder), pool=12, admission={"stream_share": 1.0})
    service.add("endless", 30, 5000, 0.0)
    for _ in range(40):
        service.step()
    for i in range(1000):
        service.add(f"large{i}", 60, 4, 0.0)
    looked = Counter[str]()
    look = service.scheduler.kv_cache_manager.get_computed_blocks

    def counted(request: Any) -> Any:
        looked["up"] += 1
        return look(request)

    service.scheduler.kv_cache_manager.get_computed_blocks = counted
    for _ in range(300):
        service.step()
    assert looked["up"] < 20
