"""The scheduler's side of a rollover (``vllm_sink/segments.py`` says what that is).

Between two steps, when no token of a stream is in flight, its evicted blocks leave the block list,
their hashes and tokens leave the request, and every count of vLLM's is lowered to match. A prompt
that is longer than a segment is fed to vLLM in pieces, at the same moments.
``segment_phase.py`` has the states and what each allows.

**A rolled stream that is preempted** cannot be computed again: its middle is gone. Its reservation
protects it from other requests; if it is preempted by hand (``reset_prefix_cache`` of running
requests), it *starts again from what it remembers*: its sinks and what its segment still holds are
its text from then on. Hashes, positions and keys are those of that text, and no other request's
cache is affected.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

from typing_extensions import override
from vllm.logger import init_logger
from vllm.v1.core.sched.scheduler import Scheduler

from vllm_sink.cache.manager import SinkWindowManager
from vllm_sink.config.kv_policy import KVPolicy
from vllm_sink.engine.segment_phase import SegmentPhase, phase_of
from vllm_sink.engine.waiting_prompts import WaitingPrompts
from vllm_sink.segments import (
    Rollover,
    StepRollovers,
    base_of,
    full_at,
    send_rollovers,
    set_base,
)

if TYPE_CHECKING:
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.request import Request

    _Base: TypeAlias = Scheduler
else:
    _Base = object

logger = init_logger("vllm.sink")


class RollingStreams(_Base):
    """The part of both schedulers that keeps streams within a segment.

    Attributes:
        full: length, in bookkeeping tokens, at which a stream rolls.
        rollovers: number of rollovers so far.
        restarts: rolled streams that were preempted and started again from what they remember.
    """

    kv_policy: KVPolicy
    manager: SinkWindowManager

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.full = full_at(self.max_model_len, self.block_size)
        self.rollovers = 0
        self.restarts = 0
        self._waiting_prompts = WaitingPrompts(self.full, self.hash_block_size)
        self._step = StepRollovers()

    def _rolls(self) -> bool:
        """Whether a stream can outgrow the segment at all."""
        limit = self.kv_policy.stream_tokens
        return limit is None or limit > self.max_model_len

    # -- a prompt comes in ------------------------------------------------------------------------

    @override
    def add_request(self, request: Request) -> None:
        if request.request_id not in self.requests:
            self._hold_back(request)
        super().add_request(request)

    @override
    def _update_request_as_session(self, session: Request, update: Any) -> None:
        super()._update_request_as_session(session, update)
        self._hold_back(session)

    def _hold_back(self, request: Request) -> None:
        """Hold back the part of a prompt that its segment has no room for yet."""
        if self._rolls() and request.num_tokens > self.full and request.prompt_token_ids:
            waiting = self._waiting_prompts.hold_back(request)
            self.manager.stream(request.request_id).waiting_tokens = waiting

    # -- a step -----------------------------------------------------------------------------------

    @override
    def schedule(self, *args: Any, **kwargs: Any) -> SchedulerOutput:
        if self._rolls():
            # With asynchronous scheduling hardly any: other streams have a step in flight.
            for request in [r for r in self.running if not r.num_in_flight_tokens]:
                if self._phase(request) is SegmentPhase.DUE:
                    self._roll(request)
        output = super().schedule(*args, **kwargs)
        for new in output.scheduled_new_reqs:
            if base := base_of(self.requests[new.req_id]):
                self._step.bases[new.req_id] = base
            if waiting := self._waiting_prompts.count(new.req_id):
                self._count_prompt(self.requests[new.req_id], waiting)
        if self._step:
            send_rollovers(output, self._step)
            self._step = StepRollovers()
        return output

    def _phase(self, request: Request) -> SegmentPhase:
        prompt_waits = request.request_id in self._waiting_prompts
        return phase_of(request, self.full, prompt_waits, self.max_num_scheduled_tokens)

    @staticmethod
    def _count_prompt(request: Request, waiting_tokens: int) -> None:
        """Add the waiting part of a prompt to its statistics."""
        if request.prefill_stats is not None and not request.num_preemptions:
            request.prefill_stats.num_prompt_tokens += waiting_tokens
            request.prefill_stats.num_computed_tokens += waiting_tokens

    @override
    def _reserve_prefill_lookahead(
        self, request: Request, num_computed_tokens: int, num_new_tokens: int
    ) -> int:
        """How many tokens this step may compute of a request; vLLM calls it for every request."""
        tokens = super()._reserve_prefill_lookahead(request, num_computed_tokens, num_new_tokens)
        if num_computed_tokens < self.full - 1 and not self._waiting_prompts:
            return tokens  # FILLING
        return self._allowed_tokens(request, num_computed_tokens, tokens)

    def _allowed_tokens(self, request: Request, num_computed_tokens: int, tokens: int) -> int:
        """Of ``tokens``, how many the phase of a stream allows."""
        if request.request_id in self._waiting_prompts:  # FEEDING, or DUE and fed already
            return max(0, min(tokens, request.num_tokens - 1 - num_computed_tokens))
        drains = self._rolls() and self._phase(request) is SegmentPhase.DRAINING
        return 0 if drains else tokens

    # -- the rollover -----------------------------------------------------------------------------

    def _roll(self, request: Request) -> None:
        """Cut the evicted tokens ``[a, b)`` out of everything, and feed the waiting prompt."""
        name = request.request_id
        self.manager.remove_skipped_blocks(name, request.num_computed_tokens)
        first, end = self.manager.drop_recycled(name)
        a, b = first * self.block_size, end * self.block_size
        prompt_cut = min(b, request.num_prompt_tokens) - min(a, request.num_prompt_tokens)
        self._cut(request, a, b, prompt_cut)
        fed = self._waiting_prompts.feed(request)
        if fed:
            self.manager.feed(name, len(fed))
        if a == b and not fed:
            return
        self.rollovers += 1
        # With asynchronous scheduling the V1 runner needs all tokens of a request that rejoins.
        self.prev_step_scheduled_req_ids.discard(name)
        self._step.rolled.append(
            Rollover(
                request_id=name,
                base=base_of(request),
                cut=(a, b),
                fed=fed,
                tokens=list(request._all_token_ids),
                num_prompt_tokens=request.num_prompt_tokens,
                num_prompt_cut=prompt_cut,
                num_computed_tokens=request.num_computed_tokens,
                block_ids=[block.block_id for block in self.manager.req_to_blocks[name]],
            )
        )

    def _cut(self, request: Request, a: int, b: int, prompt_cut: int) -> None:
        output_cut = b - a - prompt_cut
        at = max(a, request.num_prompt_tokens) - request.num_prompt_tokens
        # In place, because vLLM holds views of both; the prompt's list may be shared by a worker.
        del request._all_token_ids[a:b]
        del request._output_token_ids[at : at + output_cut]
        if prompt_cut:
            assert request.prompt_token_ids is not None
            prompt = request.prompt_token_ids
            request.prompt_token_ids = prompt[:a] + prompt[a + prompt_cut :]
        del request.block_hashes[a // self.hash_block_size : b // self.hash_block_size]
        request.num_prompt_tokens -= prompt_cut
        request.num_computed_tokens -= b - a
        request.max_tokens -= output_cut
        params = request.sampling_params
        if params is not None and params.min_tokens and output_cut:
            params = params.clone()
            params.min_tokens = max(0, params.min_tokens - output_cut)
            request.sampling_params = params
        set_base(request, base_of(request) + b - a)

    # -- a stream leaves --------------------------------------------------------------------------

    @override
    def _preempt_request(self, request: Request, *args: Any, **kwargs: Any) -> None:
        super()._preempt_request(request, *args, **kwargs)
        if not base_of(request):
            return
        logger.warning(
            "A stream was preempted after %d tokens had left its bookkeeping: it starts again from "
            "the %d tokens that it remembers (request %s)",
            base_of(request),
            request.num_tokens,
            request.request_id,
        )
        self.restarts += 1
        self._forget(request)

    @staticmethod
    def _forget(request: Request) -> None:
        """Make what is left the stream's text from now on, and hash its blocks as such."""
        set_base(request, 0)
        request.block_hashes.clear()
        request.update_block_hashes()

    @override
    def _free_blocks(self, request: Request) -> None:
        super()._free_blocks(request)
        self.forget_waiting_prompt(request.request_id)

    def forget_waiting_prompt(self, request_id: str) -> None:
        """Drop the waiting prompt of a stream that ends before all of it is fed."""
        self._waiting_prompts.forget(request_id)
