"""Who is scheduled, and when: streams have reservations, other requests take what is free.

*Streams* (``ServerFields.stream``) are admitted while their reservations fit into their share of
the pool; the next one is refused. Blocks that are reserved but not held yet serve other requests,
and return by vLLM's own preemption, which takes the last of ``running``, where streams come first.
So a stream always gets its blocks, and is never preempted for another request.

*Other requests* are admitted and preempted as in vLLM. Those that fit pass those that do not
(``waiting_queue.py``); one that has been passed for long may preempt those that passed it. None
waits longer than ``--sink-queue-timeout``.
"""

from __future__ import annotations

import time
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, TypeAlias

from typing_extensions import override
from vllm.logger import init_logger
from vllm.v1.core.sched.interface import PauseState
from vllm.v1.core.sched.request_queue import SchedulingPolicy
from vllm.v1.engine import EngineCoreOutputs
from vllm.v1.request import RequestStatus

from vllm_sink.cache.stream_reservations import Reservation, StreamReservations
from vllm_sink.config.admission import FLAGS, AdmissionConfig
from vllm_sink.engine.waiting_queue import WaitingRequests
from vllm_sink.policy import StreamPolicy, cdiv
from vllm_sink.requests.core_request import server_fields
from vllm_sink.requests.refusal import Refusal, RefusedError
from vllm_sink.segments import ENDLESS_TOKENS

if TYPE_CHECKING:
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.request import Request

    from vllm_sink.engine.stream_scheduling import StreamScheduling

    class _Base(StreamScheduling):
        pass
else:
    _Base: TypeAlias = object

logger = init_logger("vllm.sink")

#: Seconds after which a passed request may preempt others, and between two such preemptions.
PATIENCE = 10.0
BETWEEN = 1.0

#: How many such requests are considered: the oldest may never fit beside the streams.
LOOKED_AT = 8

#: Added to the priority of a stream, which so comes before any that a client can ask for.
FIRST = -(1 << 33)

#: Retry-After in seconds: of a refused stream, and of a request that waited too long.
AFTER_STREAMS, AFTER_WAITING = 10, 5


class Admission(_Base):
    """Stands before ``StreamScheduling``, and decides what it schedules.

    Attributes:
        reservations: of the streams.
        waiting: vLLM's attribute.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.admission = AdmissionConfig.from_config(self.vllm_config.additional_config)
        pool = self.kv_cache_manager.block_pool
        share = self.admission.stream_share
        self.reservations = StreamReservations(
            pool_blocks=pool.get_num_free_blocks(),
            share=share,
            max_streams=self.admission.streams_of(self.scheduler_config.max_num_seqs),
            in_flight_tokens=self.vllm_config.max_in_flight_tokens,
            block_size=self.block_size,
        )
        reservation = self._reservation(self.kv_policy.default, 1, ENDLESS_TOKENS)
        self.streams_that_fit = self.reservations.streams_that_fit(reservation)
        self.waiting: WaitingRequests = WaitingRequests(
            self.policy, self._blocks_to_start, pool.get_num_free_blocks, self._may_start
        )
        self._room_since = 0.0
        self._refused: list[tuple[Request, Refusal]] = []
        logger.info(
            "KV policy %s: %d sink tokens, a window of %d tokens (native context %d); at most %d "
            "blocks of %d tokens a stream, %d streams fit in %d of %d blocks (%s %g); attention "
            "provider: %s",
            self.kv_policy.name,
            self.kv_policy.sink_tokens,
            self.kv_policy.window,
            self.kv_policy.native,
            reservation.blocks,
            self.block_size,
            self.streams_that_fit,
            self.reservations.max_blocks,
            self.reservations.pool_blocks,
            FLAGS["stream_share"],
            share,
            self.kv_policy.provider,
        )

    def _reservation(
        self, kept: StreamPolicy, prompt_tokens: int, total_tokens: int
    ) -> Reservation:
        """What a stream may need.

        Args:
            kept: its ``S`` and ``W``.
            prompt_tokens: length of its prompt.
            total_tokens: its maximum length, prompt and output together.
        """
        spec = self.manager.kv_cache_spec
        steps = cdiv(self.vllm_config.max_in_flight_tokens, self.max_num_scheduled_tokens)
        return Reservation(
            # The bound includes one block more than two tokens in flight need.
            spec.max_blocks(kept, max(1, steps - 1), total_tokens),
            max(0, prompt_tokens - kept.window_tokens),
        )

    # -- a request comes --------------------------------------------------------------------------

    @override
    def add_request(self, request: Request) -> None:
        fields = server_fields(request)
        if fields.stream and request.request_id not in self.requests:
            reservation = self._reservation_of(request)
            if self.reservations.fits(reservation):
                self.reservations.reserve(request.request_id, reservation)
            elif fields.served:
                self.manager.counts.refused_streams += 1
                raise RefusedError(self._full(reservation))
            if self.policy == SchedulingPolicy.PRIORITY:
                request.priority += FIRST  # vLLM preempts the last by priority and arrival
        super().add_request(request)

    def _reservation_of(self, request: Request) -> Reservation:
        kept, total = self.bounds(request)
        known = self.manager.streams.get(request.request_id)
        held_back = known.waiting_tokens if known is not None else 0
        return self._reservation(kept, request.num_prompt_tokens + held_back, total)

    def _full(self, reservation: Reservation) -> Refusal:
        reservations = self.reservations
        live, share = len(reservations.held), f"{FLAGS['stream_share']} {reservations.share:g}"
        if live >= reservations.max_streams:
            flag = (
                FLAGS["max_streams"] if self.admission.max_streams else f"{share} of --max-num-seqs"
            )
            full = (
                f"{live} of at most {reservations.max_streams} streams are live ({flag}; each of a "
                "request's n answers is one)"
            )
        else:
            full = (
                f"{live} streams are live and reserve {reservations.blocks} KV blocks; this needs "
                f"{reservation.blocks}, and {reservations.free_blocks} of the "
                f"{reservations.max_blocks} for streams are free ({share} of "
                f"{reservations.pool_blocks})"
            )
        return Refusal(
            HTTPStatus.TOO_MANY_REQUESTS,
            AFTER_STREAMS,
            f"{full}. Try again when a stream has ended; a request whose prompt and max_tokens fit "
            f"in {min(self.kv_policy.native, self.full)} tokens needs no reservation",
        )

    # -- a step -----------------------------------------------------------------------------------

    @override
    def schedule(self, *args: Any, **kwargs: Any) -> SchedulerOutput:
        self.waiting.begin_step()
        if len(self.waiting) and self._pause_state == PauseState.UNPAUSED:
            now = time.monotonic()
            self._give_up_waiting(now)
            self._make_room_for_stream(now)
            self._make_room_for_oldest(now)
        output = super().schedule(*args, **kwargs)
        self.waiting.end_step()
        if any(server_fields(self.requests[r.req_id]).stream for r in output.scheduled_new_reqs):
            # vLLM preempts the last one.
            self.running.sort(key=lambda request: not server_fields(request).stream)
        return output

    def _may_start(self, request: Request) -> bool:
        """Whether a stream has a reservation; streams from Python wait here until one fits."""
        if request.request_id not in self.reservations.held:
            reservation = self._reservation_of(request)
            if not self.reservations.fits(reservation):
                return False
            self.reservations.reserve(request.request_id, reservation)
        return True

    def _blocks_to_start(self, request: Request) -> int:
        return self.manager.blocks_to_start(request.request_id, request.num_tokens)

    def _give_up_waiting(self, now: float) -> None:
        """End the requests that have waited too long."""
        timeout = self.admission.queue_timeout
        waiting = len(self.waiting)
        late = [r for r in self.waiting.expired(now - timeout) if server_fields(r).served]
        if not late:
            return
        self.finish_requests([r.request_id for r in late], RequestStatus.FINISHED_ERROR)
        free = self.kv_cache_manager.block_pool.get_num_free_blocks()
        for request in late:
            message = (
                f"the request waited {timeout:g} seconds for KV blocks ({FLAGS['queue_timeout']}): "
                f"{free} of {self.reservations.pool_blocks} are free, {waiting} requests "
                f"wait and {len(self.running)} run. Try again later or on another server"
            )
            refusal = Refusal(HTTPStatus.SERVICE_UNAVAILABLE, AFTER_WAITING, message)
            self._refused.append((request, refusal))
            self.manager.counts.refused_waiting += 1

    def _make_room_for_stream(self, now: float) -> None:
        """Preempt other requests that use blocks reserved for the next stream."""
        stream = self.waiting.first_stream()
        if stream is None or len(self.running) >= self.max_num_active_reqs:
            return
        free = self.kv_cache_manager.block_pool.get_num_free_blocks
        need = self.waiting.blocks_of(stream)
        if need <= free():
            return
        victims = self._victims()
        if free() + sum(map(self._own_blocks, victims)) < need:
            return  # streams that compute their prompts hold the rest, but not for long
        for victim in victims:
            if free() >= need or not self._preempt(victim, now):
                return

    def _make_room_for_oldest(self, now: float) -> None:
        """A request that was passed for long preempts younger ones, if that frees enough."""
        if now < self._room_since + BETWEEN:
            return
        for request in self.waiting.oldest(now - PATIENCE, LOOKED_AT):
            self._room_since = now
            free = self.kv_cache_manager.block_pool.get_num_free_blocks()
            missing = self.waiting.blocks_of(request) - free
            younger = [
                other
                for other in self.running
                if not server_fields(other).stream and other.arrival_time > request.arrival_time
            ]
            younger.sort(key=lambda other: other.arrival_time)
            if missing <= 0 or sum(map(self._own_blocks, younger)) < missing:
                continue
            while missing > 0 and younger:
                victim = younger.pop()
                missing -= self._own_blocks(victim)
                if not self._preempt(victim, now):
                    return
            self.waiting.promote(request)
            return

    def _victims(self) -> list[Request]:
        """The requests that vLLM would preempt, in that order."""
        others = [r for r in self.running if not server_fields(r).stream]
        if self.policy == SchedulingPolicy.PRIORITY:
            return sorted(others, key=lambda r: (r.priority, r.arrival_time), reverse=True)
        return others[::-1]

    def _own_blocks(self, request: Request) -> int:
        """Blocks that return to the pool if a request is preempted."""
        blocks = self.manager.req_to_blocks.get(request.request_id, ())
        return sum(not block.is_null and block.ref_cnt == 1 for block in blocks)

    def _preempt(self, request: Request, now: float) -> bool:
        if not self._request_blocks_can_be_freed(request):
            return False
        self.running.remove(request)
        self._preempt_request(request, now)
        return True

    @override
    def update_from_output(self, *args: Any, **kwargs: Any) -> dict[int, EngineCoreOutputs]:
        outputs: dict[int, EngineCoreOutputs] = super().update_from_output(*args, **kwargs)
        refused, self._refused = self._refused, []
        for request, refusal in refused:
            client = outputs.setdefault(request.client_index, EngineCoreOutputs())
            client.outputs.append(refusal.output(request.request_id))
        return outputs

    # -- a request leaves -------------------------------------------------------------------------

    @override
    def _free_blocks(self, request: Request) -> None:
        super()._free_blocks(request)
        self.reservations.release(request.request_id)
        if not self.requests:
            self.check_idle()

    def give_up(self, request_id: str) -> None:
        super().give_up(request_id)
        self.reservations.release(request_id)

    def check_idle(self) -> None:
        """Check that an idle engine reserves and holds no blocks; else log it and repair it.

        vLLM may defer freeing blocks that a step in flight still writes; those are not counted.
        """
        reservations, pool = self.reservations, self.kv_cache_manager.block_pool
        deferred = sum(len(blocks) for _, blocks in getattr(self, "deferred_frees", ()))
        lost = reservations.pool_blocks - pool.get_num_free_blocks() - deferred
        if not reservations.held and reservations.consistent and not lost:
            return
        logger.error(
            "No request is left, but %d reservations of %d blocks (recounted: %d) remain and %d "
            "blocks are not free. This is a bug in vllm-sink; please report it",
            len(reservations.held),
            reservations.blocks,
            reservations.summed()[0],
            lost,
        )
        reservations.clear()
