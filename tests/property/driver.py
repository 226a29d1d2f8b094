"""vLLM's real KV cache manager under random streams, with a shadow of what each block contains.

The driver does what vLLM's scheduler does with the manager (``v1/core/sched/scheduler.py`` and
``async_scheduler.py``: running requests first, then waiting ones, preempting the last when a
running request gets no block) and what a worker does with the blocks: a step writes the keys of the
tokens it computes, then each of these tokens reads the keys of all that it can see.

The shadow holds, for each slot of each block, the *identity* of the key in it. A key is a function
of what its token could see, directly or through others: of its whole prefix, and of ``S`` as soon
as the token no longer sees everything. What a token can see is defined again here on purpose: of
``vllm_sink.policy`` only the bound under test is imported.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import lru_cache
from random import Random
from typing import NoReturn

import torch
from vllm.sampling_params import SamplingParams
from vllm.utils.hashing import get_hash_fn_by_name
from vllm.v1.core.kv_cache_manager import KVCacheManager
from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
from vllm.v1.kv_cache_interface import KVCacheConfig, KVCacheGroupSpec
from vllm.v1.request import Request, RequestStatus

from vllm_sink.cache.hashing import SinkBlockHashes, sink_block_hasher
from vllm_sink.cache.manager import SinkWindowManager
from vllm_sink.cache.spec import SinkWindowSpec
from vllm_sink.engine.rollover import RollingStreams
from vllm_sink.policy import StreamPolicy
from vllm_sink.segments import base_of

HASH = get_hash_fn_by_name("sha256")
init_none_hash(HASH)

#: The key of one token: a hash of its whole prefix, and S and W where it does not see all of it.
Identity = tuple[int, StreamPolicy | None]


@lru_cache(1 << 14)
def visible(t: int, sinks: int, window: int) -> frozenset[int]:
    """What token ``t`` sees: the first S tokens and the last W, itself among them."""
    return frozenset(j for j in range(t + 1) if j < sinks or j > t - window)


class Violation(AssertionError):
    """A rule was broken.

    Attributes:
        rule: which one, in a word.
    """

    def __init__(self, rule: str, detail: str) -> None:
        self.rule = rule
        super().__init__(f"{rule}: {detail}")


@dataclass(frozen=True)
class Setup:
    """One engine.

    Attributes:
        block_size: tokens in a block.
        kept: what requests keep; the first is the engine's own, and no window is larger.
        depth: steps that may be scheduled and not settled; 2 is asynchronous scheduling.
        budget: maximum number of tokens of one step.
        max_model_len: maximum number of tokens of one stream.
        num_blocks: blocks in the pool, the null block among them.
    """

    block_size: int
    kept: tuple[StreamPolicy, ...]
    depth: int
    budget: int
    max_model_len: int
    num_blocks: int = 0

    @property
    def spec(self) -> SinkWindowSpec:
        return SinkWindowSpec(
            block_size=self.block_size,
            num_kv_heads=1,
            head_size=8,
            dtype=torch.float32,
            sink_tokens=self.kept[0].sink_tokens,
            window_tokens=self.kept[0].window_tokens,
        )

    @property
    def largest_stream(self) -> int:
        """Blocks that the largest stream can hold; the pool must have them."""
        in_flight = self.depth * self.budget
        return max(self.spec.max_blocks(k, in_flight, self.max_model_len) for k in self.kept)

    @classmethod
    def draw(cls, rng: Random) -> Setup:
        """A random engine with a small pool that holds any single stream."""
        size = rng.choice([4, 16])
        window = rng.choice([1, 2, size - 1, size, size + 1, 2 * size + 3])
        sinks = rng.sample([0, 1, size // 2 + 1, size, size + 3, 2 * size + 1], 3)
        windows = [window, window, rng.randint(1, window), rng.randint(1, window)]
        setup = cls(
            block_size=size,
            # The last one has the engine's sinks, or its own.
            kept=tuple(map(StreamPolicy, [*sinks, rng.choice(sinks)], windows)),
            depth=rng.choice([1, 2]),
            budget=rng.randint(2, 3 * size),
            max_model_len=rng.randint(5 * size, 9 * size),
        )
        spare = rng.randint(0, rng.choice([2, setup.largest_stream]))
        return replace(setup, num_blocks=1 + setup.largest_stream + spare)


@dataclass
class Stream:
    """A request, and what the test knows of it.

    Attributes:
        request: vLLM's.
        kept: ``S`` and ``W``.
        total_tokens: the maximum number of tokens that it can have.
        identities: the key of each of its tokens.
        gone: tokens that rolled out, and from which index.
    """

    request: Request
    kept: StreamPolicy
    total_tokens: int
    identities: list[Identity] = field(default_factory=list)
    gone: list[int] = field(default_factory=list)
    gone_from: int = 0

    @property
    def text(self) -> list[int]:
        """All its tokens, including those that rolled out."""
        known = list(self.request.all_token_ids)
        return known[: self.gone_from] + self.gone + known[self.gone_from :]


@dataclass
class Part:
    """What a step computes of one stream: tokens ``[start, end)``, with its table at that time."""

    stream: Stream
    start: int
    end: int
    table: list[int]
    samples: bool
    preemptions: int
    identities: list[Identity]


class Engine:
    """The manager, its scheduler and its worker.

    Args:
        setup: sizes.
        rng: source of every choice.
        manager_class: the manager under test, or one broken on purpose.
        name_kept: hash blocks under the request's ``S`` and ``W``, as ``StreamScheduling._open``
            does.
    """

    def __init__(
        self,
        setup: Setup,
        rng: Random,
        manager_class: type[SinkWindowManager] = SinkWindowManager,
        name_kept: bool = True,
    ) -> None:
        self.setup, self.rng, self.name_kept = setup, rng, name_kept
        self.hash_block_size = setup.block_size
        self.kv = KVCacheManager(
            KVCacheConfig(setup.num_blocks, [], [KVCacheGroupSpec(["layer"], setup.spec)]),
            max_model_len=setup.max_model_len,
            scheduler_block_size=setup.block_size,
            hash_block_size=setup.block_size,
            max_in_flight_tokens=setup.depth * setup.budget,
        )
        (manager,) = self.kv.coordinator.single_type_managers
        assert type(manager) is SinkWindowManager
        manager.__class__ = manager_class
        self.manager: SinkWindowManager = manager
        self.manager.max_in_flight_tokens = setup.depth * setup.budget
        self.pool = self.kv.block_pool
        self.contents: list[list[Identity | None]] = [
            [None] * setup.block_size for _ in range(setup.num_blocks)
        ]
        self.live: dict[str, Stream] = {}
        self.waiting: deque[Stream] = deque()
        self.running: list[Stream] = []
        self.in_flight: deque[list[Part]] = deque()
        self.history: list[list[int]] = []
        self.counts: Counter[str] = Counter()
        self.log: list[str] = []

    # -- what may happen --------------------------------------------------------------------------

    def add(self, kept: StreamPolicy, prompt: list[int], max_tokens: int) -> Stream:
        """A request arrives (``add_request``)."""
        setup = self.setup
        request = Request(
            request_id=f"r{self.counts['added']}",
            prompt_token_ids=prompt,
            sampling_params=SamplingParams(max_tokens=max_tokens),
            pooling_params=None,
            arrival_time=0.0,
            block_hasher=get_request_block_hasher(setup.block_size, HASH),
        )
        default = setup.kept[0]
        total = min(len(prompt) + max_tokens, setup.max_model_len)
        self.manager.open_stream(request.request_id, kept)
        if kept != default and self.name_kept:
            shared = min(kept.sees_everything_below, default.sees_everything_below)
            request.block_hashes = SinkBlockHashes(kept)
            request._block_hasher = sink_block_hasher(setup.block_size, HASH, kept, shared)
            request.update_block_hashes()
        stream = Stream(request, kept, total)
        self._identify(stream)
        self.live[request.request_id] = stream
        self.waiting.append(stream)
        self.counts["added"] += 1
        self._did(f"add {request.request_id} {tuple(kept)} prompt={len(prompt)} out={max_tokens}")
        return stream

    def schedule(self, budget: int, chunk: int) -> None:
        """One step of the scheduler (``schedule``), at most ``chunk`` tokens a request."""
        for stream in self.running:
            if self.rng.random() < 0.3:
                self.roll(stream)
        parts: list[Part] = []
        preempted = False
        index = 0
        while index < len(self.running) and budget > 0:
            stream = self.running[index]
            tokens = min(self._tokens_to_compute(stream.request), budget, chunk)
            index += 1
            if tokens <= 0:
                continue
            while (blocks := self.kv.allocate_slots(stream.request, tokens)) is None:
                self.counts["forced"] += 1
                self._did(f"forced: no block for {stream.request.request_id}")
                preempted = True
                victim = self.running[-1]
                self.preempt(victim)
                if victim is stream:
                    break
            if blocks is None:
                break
            budget -= tokens
            parts.append(self._scheduled(stream, tokens))
        if not preempted:
            self._admit(budget, chunk, parts)
        for part in parts:
            self._advance(part)
        if parts:
            self.in_flight.append(parts)
            self._did(
                "schedule "
                + " ".join(f"{p.stream.request.request_id}[{p.start}:{p.end})" for p in parts)
            )
            for part in parts:
                self._check_holding(part)
        elif self.waiting and not self.running and not self.in_flight:
            self._fail("progress", "an idle engine does not admit its first request")

    def settle(self) -> None:
        """The oldest step runs on the worker and its output returns (``update_from_output``)."""
        parts = self.in_flight.popleft()
        for part in parts:
            self._write(part)
        for part in parts:
            self._read(part)
        for part in parts:
            self._output(part)
        self._did("settle")

    def preempt(self, stream: Stream) -> None:
        """A running request loses everything and starts again (``_preempt_request``)."""
        request = stream.request
        self.running.remove(stream)
        self.kv.free(request)
        request.status = RequestStatus.PREEMPTED
        request.num_computed_tokens = 0
        request.num_stale_output_tokens = request.num_in_flight_tokens
        request.num_output_placeholders = 0
        request.num_preemptions += 1
        self.waiting.appendleft(stream)
        if base_of(request):
            # It starts again from what it remembers (``RollingStreams._preempt_request``).
            RollingStreams._forget(request)
            stream.gone, stream.identities = [], []
            self._identify(stream)
            self.counts["restarted"] += 1
        self.counts["preempted"] += 1
        self._did(f"preempt {request.request_id}")

    def roll(self, stream: Stream) -> None:
        """Evicted blocks leave a stream that has nothing in flight (``RollingStreams._roll``)."""
        request, size = stream.request, self.setup.block_size
        if request.num_in_flight_tokens:
            return
        self.manager.remove_skipped_blocks(request.request_id, request.num_computed_tokens)
        first, end = self.manager.drop_recycled(request.request_id)
        a, b = first * size, end * size
        if a == b:
            return
        stream.gone_from = a
        stream.gone += request.all_token_ids[a:b]
        stream.total_tokens -= b - a
        del stream.identities[a:b]
        prompt = request.num_prompt_tokens
        RollingStreams._cut(self, request, a, b, min(b, prompt) - min(a, prompt))  # type: ignore[arg-type]
        self.counts["rolled"] += 1
        self._did(f"roll {request.request_id}[{a}:{b})")

    def finish(self, stream: Stream, why: str) -> None:
        """A request stops or is aborted, wherever it is (``finish_requests``)."""
        request = stream.request
        (self.running if stream in self.running else self.waiting).remove(stream)
        request.status = RequestStatus.FINISHED_ABORTED
        del self.live[request.request_id]
        self.kv.free(request)
        self.manager.close_stream(request.request_id)
        self.history.append(stream.text)
        self.counts[why] += 1
        self._did(f"{why} {request.request_id}")

    # -- the scheduler's inside -------------------------------------------------------------------

    def _tokens_to_compute(self, request: Request) -> int:
        placeholders = request.num_output_placeholders
        end = request.num_prompt_tokens + request.max_tokens
        if placeholders and request.num_computed_tokens + 2 - placeholders >= end:
            return 0
        left: int = request.num_tokens + placeholders - request.num_computed_tokens
        room: int = self.setup.max_model_len - request.num_computed_tokens - 1
        return min(left, room)

    def _admit(self, budget: int, chunk: int, parts: list[Part]) -> None:
        draining: list[Stream] = []
        while self.waiting and budget > 0:
            stream = self.waiting[0]
            request = stream.request
            if request.num_stale_output_tokens:
                draining.append(self.waiting.popleft())
                continue
            blocks, hit, _ = self.kv.get_computed_blocks(request)
            tokens = min(request.num_tokens - hit, budget, chunk)
            new_blocks = self.kv.allocate_slots(
                request,
                tokens,
                num_new_computed_tokens=hit,
                new_computed_blocks=blocks,
                full_sequence_must_fit=True,
                has_scheduled_reqs=bool(self.running),
            )
            if new_blocks is None:
                self.counts["refused"] += 1
                break
            self.waiting.popleft()
            request.status = RequestStatus.RUNNING
            request.num_computed_tokens = hit
            self.running.append(stream)
            budget -= tokens
            parts.append(self._scheduled(stream, tokens))
            self.counts["admitted"] += 1
            self.counts["hits"] += hit > 0
            self.counts["hits with a hole"] += any(b.is_null for b in blocks.blocks[0])
        self.waiting.extendleft(reversed(draining))

    def _scheduled(self, stream: Stream, tokens: int) -> Part:
        request, size = stream.request, self.setup.block_size
        start = request.num_computed_tokens
        blocks = self.manager.req_to_blocks[request.request_id]
        for i in range(start // size, (start + tokens - 1) // size + 1):
            if blocks[i].ref_cnt != 1:
                self._fail("write", f"{request.request_id} writes block {i}, which others read")
        table = [b.block_id for b in blocks]
        return Part(
            stream,
            start,
            start + tokens,
            table,
            False,
            request.num_preemptions,
            stream.identities,
        )

    def _advance(self, part: Part) -> None:
        request = part.stream.request
        request.num_computed_tokens += part.end - part.start
        request.num_in_flight_tokens += part.end - part.start
        part.samples = part.end >= request.num_tokens + request.num_output_placeholders
        if part.samples and self.setup.depth > 1:
            request.num_output_placeholders += 1

    def _output(self, part: Part) -> None:
        stream, request = part.stream, part.stream.request
        tokens = part.end - part.start
        request.num_in_flight_tokens -= tokens
        stale = request.num_stale_output_tokens > 0
        if stale:
            request.num_stale_output_tokens -= tokens
        if request.request_id not in self.live or not part.samples:
            return
        request.append_output_token_ids(self.rng.randrange(3))
        self._identify(stream)
        if not stale and self.setup.depth > 1:
            request.num_output_placeholders -= 1
            self.kv.coordinator.cache_blocks(
                request, request.num_computed_tokens - request.num_output_placeholders
            )
        if request.num_tokens >= stream.total_tokens:
            self.finish(stream, "finished")

    # -- the shadow -------------------------------------------------------------------------------

    def _identify(self, stream: Stream) -> None:
        tokens = stream.request.all_token_ids
        prefix = stream.identities[-1][0] if stream.identities else 0
        for t in range(len(stream.identities), len(tokens)):
            prefix = hash((prefix, tokens[t]))
            sees_all = len(visible(t, *stream.kept)) == t + 1
            stream.identities.append((prefix, None if sees_all else stream.kept))

    def _write(self, part: Part) -> None:
        size = self.setup.block_size
        known = part.identities
        for t in range(part.start, part.end):
            # A token that an aborted request sampled stays on the worker: its key may not be read.
            key = known[t] if t < len(known) else None
            self.contents[part.table[t // size]][t % size] = key

    def _read(self, part: Part) -> None:
        stream, size = part.stream, self.setup.block_size
        name = stream.request.request_id
        # The blocks of a request that ended meanwhile may be free, but are not yet overwritten.
        went = name not in self.live or part.preemptions != stream.request.num_preemptions
        held = {b.block_id for b in self.manager.req_to_blocks.get(name, ()) if not b.is_null}
        for j in sorted(self._reads(part)):
            if went and j >= len(part.identities):
                continue
            block = part.table[j // size]
            if block == self.pool.null_block.block_id or not (went or block in held):
                self._fail("freed", f"{name}[{part.start}:{part.end}) reads {j}: its block is gone")
            if self.contents[block][j % size] != part.identities[j]:
                self._fail("content", f"{name}[{part.start}:{part.end}) reads {j}: not its own key")
            self.counts["reads"] += 1

    def _reads(self, part: Part) -> set[int]:
        seen = (visible(t, *part.stream.kept) for t in range(part.start, part.end))
        return set[int]().union(*seen)

    # -- rules ------------------------------------------------------------------------------------

    def _check_holding(self, part: Part) -> None:
        """A scheduled stream holds what its unsettled tokens read, and no block more."""
        stream, size = part.stream, self.setup.block_size
        request = stream.request
        blocks = self.manager.req_to_blocks[request.request_id]
        held = {i for i, b in enumerate(blocks) if not b.is_null}
        unsettled = replace(part, start=part.end - request.num_in_flight_tokens)
        needed = {j // size for j in self._reads(unsettled)}
        if needed - held:
            self._fail("freed", f"{request.request_id} lacks blocks {sorted(needed - held)}")
        if held - needed:
            self._fail("bound", f"{request.request_id} keeps blocks {sorted(held - needed)}")
        most = self.setup.spec.max_blocks(
            stream.kept, request.num_in_flight_tokens, stream.total_tokens
        )
        if len(held) > most:
            self._fail("bound", f"{request.request_id} holds {len(held)} blocks, more than {most}")

    def check_integrity(self) -> None:
        """free + held == total; every reference has its holder; no other request holds blocks."""
        holders: Counter[int] = Counter()
        for name, blocks in self.manager.req_to_blocks.items():
            ids = [b.block_id for b in blocks if not b.is_null]
            holders.update(ids)
            if ids and (name not in self.live or self.live[name] not in self.running):
                self._fail("leak", f"{name} does not run and holds {ids}")
            if len(set(ids)) != len(ids):
                self._fail("leak", f"{name} holds a block twice: {ids}")
        for name, known in self.manager.streams.items():
            held = [b for b in self.manager.req_to_blocks.get(name, ()) if not b.is_null]
            if known.held != len(held):
                self._fail("count", f"{name} holds {len(held)} blocks, not {known.held}")
        if self.manager.streams.keys() != self.live.keys():
            self._fail("leak", f"streams {list(self.manager.streams)}, live {list(self.live)}")
        free = [b.block_id for b in self.pool.free_block_queue.get_all_free_blocks()]
        if len(free) != self.pool.get_num_free_blocks() or len(set(free)) != len(free):
            self._fail("count", "the free queue and its count differ")
        null = self.pool.null_block.block_id
        if sorted([null, *free, *holders]) != list(range(self.setup.num_blocks)):
            self._fail("count", f"free {sorted(free)} and held {sorted(holders)} are not all")
        for block in self.pool.blocks:
            if not block.is_null and block.ref_cnt != holders[block.block_id]:
                held_by = holders[block.block_id]
                self._fail("count", f"block {block.block_id}: {held_by} hold it, {block.ref_cnt}")

    def check_empty(self) -> None:
        """After the last request nothing is held."""
        self.check_integrity()
        if self.manager.streams or self.manager.req_to_blocks or self.manager.num_cached_block:
            self._fail("leak", "something is left of finished requests")
        if self.pool.get_num_free_blocks() != self.setup.num_blocks - 1:
            self._fail("leak", "not all blocks are free")

    def _did(self, what: str) -> None:
        self.log.append(f"{what}  ({self.pool.get_num_free_blocks()} free)")

    def _fail(self, rule: str, detail: str) -> NoReturn:
        raise Violation(rule, f"{detail}\n{self.setup}\n" + "\n".join(self.log[-40:]))


class Run:
    """One engine from its first request to its last, all of it drawn from ``seed``.

    Args:
        seed: names the run.
        manager_class: see :class:`Engine`.
        name_kept: see :class:`Engine`.
    """

    def __init__(
        self,
        seed: int,
        manager_class: type[SinkWindowManager] = SinkWindowManager,
        name_kept: bool = True,
    ) -> None:
        self.rng = Random(seed)
        self.setup = Setup.draw(self.rng)
        self.engine = Engine(self.setup, self.rng, manager_class, name_kept)
        self.threshold = self.rng.choice([1 << 30, self.rng.randint(1, self.setup.budget)])

    def __call__(self, ticks: int = 40) -> Counter[str]:
        """Run it; how often each event happened.

        Raises:
            Violation: a rule was broken.
        """
        for _ in range(ticks):
            self._tick()
            self._check()
        for _ in self._until_idle():
            self._check()
        self.engine.check_empty()
        return self.engine.counts

    def _check(self) -> None:
        self.engine.check_integrity()

    def _tick(self) -> None:
        engine, rng = self.engine, self.rng
        dice = rng.random()
        if dice < 0.25 and len(engine.live) < 8:
            prompt = self._prompt()
            room = self.setup.max_model_len - len(prompt)
            most = max(1, min(room, 3 * self.setup.block_size))
            engine.add(rng.choice(self.setup.kept), prompt, rng.randint(1, most))
        elif dice < 0.28 and engine.running:
            engine.preempt(engine.running[-1])
        elif dice < 0.31 and engine.live:
            engine.finish(rng.choice(list(engine.live.values())), "aborted")
        elif engine.in_flight and (len(engine.in_flight) == self.setup.depth or dice < 0.5):
            engine.settle()
        else:
            self._schedule()

    def _schedule(self) -> None:
        # Other work may have taken a part of this step's budget.
        full = self.setup.budget
        budget = full if self.rng.random() < 0.5 else self.rng.randint(1, full)
        self.engine.schedule(budget, self.threshold)

    def _until_idle(self) -> Iterator[None]:
        engine = self.engine
        for _ in range(4000):
            if not engine.live and not engine.in_flight:
                return
            if len(engine.in_flight) < self.setup.depth:
                self._schedule()
                yield
            if engine.in_flight:
                engine.settle()
                yield
        engine._fail("progress", "the engine does not come to rest")

    def _prompt(self) -> list[int]:
        """New tokens, or a prefix of an earlier stream's followed by new ones."""
        rng, engine = self.rng, self.engine
        most = self.setup.max_model_len - 1
        live = [s.text for s in engine.live.values()]
        known = live if live and rng.random() < 0.5 else live + engine.history
        head: list[int] = []
        if known and rng.random() < 0.75:
            head = rng.choice(known)
            if rng.random() < 0.4:
                head = head[: rng.randint(1, len(head))]
        fresh = rng.randint(1, 2 * self.setup.block_size if head else most)
        return (head + [rng.randrange(3) for _ in range(fresh)])[:most]
