"""The engine core's side: counts streams, without work on any token.

The block manager keeps settled tokens and blocks held anyway. They are read when a stream ends or
is preempted, and otherwise once a second by a walk over the live streams: some microseconds for
each of them, and nothing in a step. A message is due every second, and as soon as the last stream
has ended, so that an idle engine shows true values.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING

import psutil

from vllm_sink import policy
from vllm_sink.cache.statistics import CacheCounts
from vllm_sink.metrics.messages import StreamStats, TenantStats

if TYPE_CHECKING:
    from vllm_sink.cache.manager import SinkWindowManager, Stream
    from vllm_sink.cache.stream_reservations import StreamReservations
    from vllm_sink.tenancy.labels import Labels

#: Seconds between two messages of a busy engine.
INTERVAL = 1.0


@dataclass
class _Known:
    """The collector's state of a request.

    Attributes:
        tenant: its label; None if the label is off.
        opened: when it arrived, by the monotonic clock.
        admissions: completed admissions; a request without one is not counted as a stream.
        rolled_tokens: tokens that rollovers took out of vLLM's bookkeeping: a token's true index
            is this plus its index there.
        computed_tokens: of its current admission, counted so far.
        evicted_tokens: of its current admission, counted so far.
    """

    tenant: str | None
    opened: float = field(default_factory=time.monotonic)
    admissions: int = 0
    rolled_tokens: int = 0
    computed_tokens: int = 0
    evicted_tokens: int = 0


class StreamCollector:
    """Statistics of one engine's streams.

    Args:
        manager: the block manager.
        native_context: positions that the model has learned.
        reservations: of the streams.
        streams_that_fit: how many streams with the engine's own ``S`` fit.
        tenants: chooses labels; None if they are off.
    """

    def __init__(
        self,
        manager: SinkWindowManager,
        native_context: int,
        reservations: StreamReservations,
        streams_that_fit: int,
        tenants: Labels | None = None,
    ) -> None:
        self._manager = manager
        self._native = native_context
        self._reservations = reservations
        self._tenants = tenants
        self._pool_blocks = manager.block_pool.num_gpu_blocks - 1  # without the null block
        self._known: dict[str, _Known] = {}
        self._sent = CacheCounts()
        self._releases = 0
        self._due = 0.0
        self._pending = StreamStats(streams_that_fit=streams_that_fit)
        self._fits = streams_that_fit

    # -- what happens to a stream -----------------------------------------------------------------

    def opened(self, request_id: str, tenant: str | None = None) -> None:
        """A request arrived."""
        label = None if self._tenants is None else self._tenants.of(tenant)
        self._known[request_id] = _Known(label)

    def released(self, request_id: str, settled_tokens: int) -> None:
        """A stream is about to lose all its blocks: it ends, or is preempted.

        Args:
            request_id: the request's.
            settled_tokens: tokens computed in its current admission, a prefix hit included.
        """
        known, stream = self._known.get(request_id), self._manager.streams.get(request_id)
        if known is None or stream is None or not stream.admitted:
            return
        stream.settled_tokens = max(0, settled_tokens)
        self._count(known, stream)
        self._releases += 1
        known.admissions += 1
        known.computed_tokens = known.evicted_tokens = 0

    def preempted(self, request_id: str, reserved: bool) -> None:
        """A request lost its blocks and will be computed again, from what vLLM's lists hold.

        Args:
            request_id: the request's.
            reserved: whether it had a reservation; vLLM counts the others.
        """
        self._pending.preemptions += reserved
        if (known := self._known.get(request_id)) is not None:
            known.rolled_tokens = 0

    def rolls(self, request_id: str) -> None:
        """A stream's bookkeeping is about to be shortened: count what was computed until now."""
        known, stream = self._known.get(request_id), self._manager.streams.get(request_id)
        if known is not None and stream is not None:
            self._count(known, stream)

    def rolled(self, request_id: str, tokens: int, seconds: float) -> None:
        """A stream's bookkeeping was shortened, and the manager's indices with it.

        Args:
            request_id: the request's.
            tokens: how many left vLLM's lists.
            seconds: how long it took.
        """
        if (known := self._known.get(request_id)) is not None:
            known.rolled_tokens += tokens
        self._pending.rollovers.append(seconds)

    def ended(self, request_id: str, tokens: int) -> None:
        """A request finished or was aborted, with so many tokens in vLLM's lists."""
        known = self._known.pop(request_id, None)
        if known is not None and known.admissions:
            age = time.monotonic() - known.opened
            self._pending.ended.append((known.rolled_tokens + tokens, age))

    # -- messages ---------------------------------------------------------------------------------

    def message(self) -> StreamStats | None:
        """The message that is due now, if any."""
        now = time.monotonic()
        live = self._manager.counts.admitted > self._releases
        if now < self._due and (live or not self._unsent()):
            return None
        self._due = now + INTERVAL
        return self._take()

    def _unsent(self) -> bool:
        """Whether something happened since the last message."""
        return bool(self._pending.ended) or self._sent != self._manager.counts

    def _take(self) -> StreamStats:
        manager, stats = self._manager, self._pending
        self._pending = StreamStats(streams_that_fit=self._fits)
        if self._tenants is not None:
            # Every label, so that a tenant without streams is shown as 0.
            for label in self._tenants:
                stats.tenants.setdefault(label, TenantStats())
        self._walk(stats)
        now, sent = manager.counts, self._sent
        for name in (f.name for f in fields(CacheCounts)):
            setattr(stats, name, getattr(now, name) - getattr(sent, name))
        self._sent = CacheCounts(**vars(now))
        stats.free_blocks = manager.block_pool.get_num_free_blocks()
        stats.window_blocks = self._pool_blocks - stats.free_blocks - stats.sink_blocks
        stats.resident_bytes = resident_bytes()
        return stats

    def _walk(self, stats: StreamStats) -> None:
        """Add gauges and counters of the live streams."""
        manager = self._manager
        size = manager.block_size
        pinned: set[int] = set()
        in_windows = windows = held_of_reserved = 0
        for request_id, stream in manager.streams.items():
            known = self._known.get(request_id)
            if known is None or not stream.admitted:
                continue
            self._count(known, stream, stats)
            tokens = known.rolled_tokens + stream.settled_tokens
            stats.streams += 1
            stats.past_context += tokens > self._native
            in_windows += min(tokens, stream.kept.window_tokens)
            windows += stream.kept.window_tokens
            blocks = manager.req_to_blocks.get(request_id, ())
            first = policy.sink_blocks(stream.kept.sink_tokens, size)
            pinned.update(block.block_id for block in blocks[:first])
            if request_id in self._reservations.held:
                held_of_reserved += stream.held
            if known.tenant is not None:
                tenant = stats.tenants[known.tenant]
                tenant.streams += 1
                tenant.blocks += stream.held
        stats.sink_blocks = len(pinned)
        stats.promised_streams = len(self._reservations.held)
        stats.reserved_blocks = max(0, self._reservations.blocks - held_of_reserved)
        if stats.streams:
            stats.window_occupancy = in_windows / windows

    def _count(self, known: _Known, stream: Stream, stats: StreamStats | None = None) -> None:
        """Add what a stream computed and evicted since it was last counted."""
        stats = stats or self._pending
        # What a prefix hit skipped was never held, so it is not evicted either.
        before = self._evicted(known.rolled_tokens + stream.hit_tokens, stream)
        evicted = self._evicted(known.rolled_tokens + stream.settled_tokens, stream) - before
        computed = stream.settled_tokens - stream.hit_tokens
        newly_computed = max(0, computed - known.computed_tokens)
        newly_evicted = max(0, evicted - known.evicted_tokens)
        known.computed_tokens += newly_computed
        known.evicted_tokens += newly_evicted
        stats.evicted_tokens += newly_evicted
        if known.tenant is not None and self._tenants is not None:
            tenant = stats.tenants.setdefault(known.tenant, TenantStats())
            tenant.computed_tokens += newly_computed
            tenant.evicted_tokens += newly_evicted

    def _evicted(self, tokens: int, stream: Stream) -> int:
        """Of the first ``tokens`` tokens, how many the last one does not see."""
        if not tokens:
            return 0
        return policy.evicted_tokens(tokens - 1, *stream.kept)


def resident_bytes() -> int:
    """Host memory of this process, resident."""
    rss: int = psutil.Process().memory_info().rss
    return rss
