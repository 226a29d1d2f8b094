"""The queue of waiting requests: finds the next one without walking all of them.

vLLM's own queues (``v1/core/sched/request_queue.py``) have one head; while it does not fit into the
free blocks, no request is scheduled. Here those that fit pass it:

::

    rank 0   streams, first come first served (or by priority)
    rank 1   the others: first those that waited long and for which room was made;
             then the preempted ones; then new ones, in turns among their tenants

    sizes    5 blocks: [r7, r9]    6: [r2]    40: [r1, r4]      one heap for each size

The next is the first, by rank, of the heads of the sizes that fit. Turns are start-time fair
queueing (Goyal, Vin and Cheng, SIGCOMM 1996): a request starts, in blocks of service, where its
tenant's last one ended or where the queue is now, whichever is later. With one tenant that is first
come first served.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush
from itertools import count

from vllm.v1.core.sched.request_queue import RequestQueue, SchedulingPolicy
from vllm.v1.request import Request, RequestStatus

from vllm_sink.requests.core_request import server_fields

_STREAM, _ORDINARY = range(2)

#: Ordinary requests, in this order.
_PROMOTED, _PREEMPTED, _NEW = range(3)

#: The size of every stream: they are taken in order.
_STREAMS = -1

#: Maximum of steps before a request that did not fit is tried again.
_LONGEST_PAUSE = 64


@dataclass(eq=False)
class _Entry:
    """A request that waits.

    Attributes:
        rank: its place in the order.
        blocks: what must be free to schedule it, if none of it is cached.
        since: when it began to wait, by the monotonic clock.
        waits: False once it left.
        pause: steps before its next try, after it did not fit.
        next_try: the step of that try.
    """

    request: Request
    rank: tuple[float, ...]
    blocks: int
    since: float
    waits: bool = True
    pause: int = 0
    next_try: int = 0

    @property
    def size(self) -> int:
        """``blocks`` rounded down by at most an eighth; requests of a size are tried in order."""
        if self.rank[0] != _ORDINARY:
            return _STREAMS
        spread = max(0, self.blocks.bit_length() - 4)
        return self.blocks >> spread << spread

    def __lt__(self, other: _Entry) -> bool:
        return self.rank < other.rank


@dataclass
class _Turns:
    """The turns of tenants: for each one, where its last request ends."""

    now: float = 0.0
    ends: dict[str | None, float] = field(default_factory=dict)

    def start(self, tenant: str | None, blocks: int) -> float:
        begin = max(self.now, self.ends.get(tenant, 0.0))
        self.ends[tenant] = begin + blocks + 1
        return begin

    def forget(self, waiting: int) -> None:
        """Drop tenants whose last request has had its turn: they are like new ones."""
        if len(self.ends) > 2 * waiting + 64:
            self.ends = {t: end for t, end in self.ends.items() if end > self.now}


class WaitingRequests(RequestQueue):
    """The scheduler's queue.

    It is true if a request can be scheduled now, which vLLM checks before each request that it
    schedules; its length counts all that wait.

    Args:
        policy: of vLLM's scheduler; with ``priority``, priorities come before turns.
        blocks: blocks that must be free to schedule a request, if none of it is cached.
        free_blocks: free blocks of the pool.
        stream_may_start: whether a stream's blocks are reserved.
    """

    def __init__(
        self,
        policy: SchedulingPolicy,
        blocks: Callable[[Request], int],
        free_blocks: Callable[[], int],
        stream_may_start: Callable[[Request], bool],
    ) -> None:
        self._by_priority = policy == SchedulingPolicy.PRIORITY
        self._blocks = blocks
        self._free_blocks = free_blocks
        self._stream_may_start = stream_may_start
        self._entries: dict[str, _Entry] = {}
        self._sizes: dict[int, list[_Entry]] = {}
        self._by_age: deque[_Entry] = deque()
        self._left = 0  # entries of requests that left, still in a heap
        self._turns = _Turns()
        self._numbers = count()
        self._next: _Entry | None = None
        self._popped: dict[str, _Entry] = {}
        self._step = 0
        self._last_free = 0

    # -- once a step ------------------------------------------------------------------------------

    def begin_step(self) -> None:
        """Before the scheduler's step: a request that the last one tried and left did not fit."""
        self._step += 1
        free = self._free_blocks()
        tried, self._next = self._next, None
        if tried is not None and tried.waits:
            grown = free > self._last_free
            tried.pause = 1 if grown else min(2 * tried.pause or 1, _LONGEST_PAUSE)
            tried.next_try = self._step + tried.pause
        self._last_free = free
        self._turns.forget(len(self._entries))

    def end_step(self) -> None:
        """After the scheduler's step: the requests that it popped are running."""
        self._popped.clear()

    def expired(self, since: float) -> list[Request]:
        """Requests that have waited since ``since`` or longer, oldest first; each once."""
        found = []
        while self._by_age and (not self._by_age[0].waits or self._by_age[0].since <= since):
            entry = self._by_age.popleft()
            if entry.waits:
                found.append(entry.request)
        return found

    def oldest(self, since: float, limit: int) -> list[Request]:
        """The oldest requests, streams apart, that have waited since ``since`` or longer."""
        found: list[Request] = []
        for entry in self._by_age:
            if entry.since > since or len(found) == limit:
                break
            if entry.waits and entry.rank[0] == _ORDINARY:
                found.append(entry.request)
        return found

    def promote(self, request: Request) -> None:
        """Put a request before the others: room was made for it."""
        entry = self._entries[request.request_id]
        entry.rank = (_ORDINARY, self._priority(request), _PROMOTED, next(self._numbers))
        entry.pause = entry.next_try = 0
        heapify(self._sizes[entry.size])

    def first_stream(self) -> Request | None:
        """The next stream, if one waits and its blocks are reserved."""
        head = self._head(_STREAMS)
        if head is None or not self._stream_may_start(head.request):
            return None
        return head.request

    def blocks_of(self, request: Request) -> int:
        """Blocks that must be free to schedule a request, if none of it is cached."""
        return self._entries[request.request_id].blocks

    # -- who is next ------------------------------------------------------------------------------

    def __bool__(self) -> bool:
        self._next = self._choose() if self._entries else None
        return self._next is not None

    def _choose(self) -> _Entry | None:
        free = self._free_blocks()
        first = self._head(_STREAMS)
        if first is not None and self._stream_may_start(first.request) and first.blocks <= free:
            return first
        # If it does not fit, other streams still compute their prompts. Blocks that other requests
        # take meanwhile are preempted as soon as they are enough.
        best: _Entry | None = None
        oldest: _Entry | None = None
        for size in list(self._sizes):
            if size == _STREAMS or (head := self._head(size)) is None:
                continue
            if oldest is None or head < oldest:
                oldest = head
            if head.blocks <= free and self._step >= head.next_try and (not best or head < best):
                best = head
        if best is None and oldest is not None and self._step >= oldest.next_try:
            return oldest  # some of it may be cached, in blocks that others hold
        return best

    def _head(self, size: int) -> _Entry | None:
        heap = self._sizes.get(size)
        while heap and not heap[0].waits:
            heappop(heap)
            self._left -= 1
        if not heap:
            self._sizes.pop(size, None)
            return None
        return heap[0]

    def peek_request(self) -> Request:
        entry = self._next or self._choose() or min(self._entries.values())
        self._next = entry
        return entry.request

    def pop_request(self) -> Request:
        request = self.peek_request()
        entry, self._next = self._entries.pop(request.request_id), None
        self._drop(entry)
        self._popped[request.request_id] = entry
        if entry.rank[0] == _ORDINARY and entry.rank[2] == _NEW:
            self._turns.now = max(self._turns.now, entry.rank[3])
        if not self._entries:
            self._turns = _Turns()
        return request

    # -- come and go ------------------------------------------------------------------------------

    def add_request(self, request: Request) -> None:
        fields, blocks = server_fields(request), self._blocks(request)
        if fields.stream:
            rank: tuple[float, ...] = (_STREAM, self._priority(request), next(self._numbers))
        elif request.status == RequestStatus.PREEMPTED:
            rank = (_ORDINARY, self._priority(request), _PREEMPTED, request.arrival_time)
        else:
            start = self._turns.start(fields.tenant, blocks)
            rank = (_ORDINARY, self._priority(request), _NEW, start, next(self._numbers))
        entry = _Entry(request, rank, blocks, time.monotonic())
        self._entries[request.request_id] = entry
        self._by_age.append(entry)
        self._enter(entry)

    def _priority(self, request: Request) -> int:
        return request.priority if self._by_priority else 0

    def _enter(self, entry: _Entry) -> None:
        heappush(self._sizes.setdefault(entry.size, []), entry)

    def prepend_request(self, request: Request) -> None:
        """Add a request that was preempted, or that this step popped and puts back."""
        entry = self._popped.pop(request.request_id, None)
        if entry is None:
            self.add_request(request)
            return
        entry.waits = True
        self._entries[request.request_id] = entry
        self._enter(entry)

    def prepend_requests(self, requests: Iterable[Request]) -> None:
        for request in requests:
            self.prepend_request(request)

    def remove_request(self, request: Request) -> None:
        self._drop(self._entries.pop(request.request_id))

    def remove_requests(self, requests: Iterable[Request]) -> None:
        for request in requests:
            if (entry := self._entries.pop(request.request_id, None)) is not None:
                self._drop(entry)

    def _drop(self, entry: _Entry) -> None:
        """Remove an entry: immediately if it is a head, else when most entries have left."""
        heap = self._sizes[entry.size]
        entry.waits = False
        if heap[0] is entry:
            heappop(heap)
            return
        # The same request may come back before its entry is removed: it then has a new entry.
        self._left += 1
        if self._left > len(self._entries) + 64:
            self._compact()

    def _compact(self) -> None:
        for size, heap in list(self._sizes.items()):
            heap[:] = [entry for entry in heap if entry.waits]
            heapify(heap)
            if not heap:
                del self._sizes[size]
        self._left = 0
        popped = self._popped.values()
        self._by_age = deque(e for e in self._by_age if e.waits or e in popped)

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Request]:
        return (entry.request for entry in sorted(self._entries.values()))
