"""The workers' side of a rollover (``vllm_sink/segments.py`` says what that is).

Before a step, the lists of each stream that rolled become what the scheduler's are; and each step,
the positions of a stream's tokens are raised by its base: their true index, by which keys are
rotated and the sinks are turned back. Slots and lengths stay bookkeeping indices.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from vllm.utils.torch_utils import async_tensor_h2d

from vllm_sink import compat
from vllm_sink.segments import Rollover, rollovers_of
from vllm_sink.worker.penalty_history import ForgottenTokens, counting, penalised

if TYPE_CHECKING:
    from vllm.v1.core.sched.output import SchedulerOutput


class StreamRollovers(Protocol):
    """What a worker asks for before each step.

    Attributes:
        count: rollovers so far.
    """

    count: int

    def before_step(self, scheduler_output: SchedulerOutput) -> None: ...


#: The attribute of a V1 runner that holds its :class:`V1Rollovers`.
_ON_RUNNER = "sink_rollovers"


def rollovers_for(runner: Any, use_v2: bool) -> StreamRollovers:
    """The rollovers of a model runner."""
    return V2Rollovers(runner) if use_v2 else V1Rollovers(runner)


class V1Rollovers:
    """For ``v1/worker/gpu_model_runner.py``, on CPUs and GPUs."""

    def __init__(self, runner: Any) -> None:
        self.runner = runner
        self.count = 0
        self.bases: dict[str, int] = {}
        self.forgotten: dict[str, ForgottenTokens] = {}
        setattr(runner, _ON_RUNNER, self)
        compat.wrap_v1_positions(_raise_positions)
        compat.wrap_method_of(
            runner.sampler, "apply_penalties", partial(counting, rows=self._forgotten_rows)
        )

    def before_step(self, scheduler_output: SchedulerOutput) -> None:
        step = rollovers_of(scheduler_output)
        self.count += len(step.rolled)
        if self.bases or self.forgotten:
            for name in scheduler_output.finished_req_ids:
                self.bases.pop(name, None)
                self.forgotten.pop(name, None)
            # A stream that comes back after a preemption starts again.
            for name in scheduler_output.scheduled_cached_reqs.resumed_req_ids:
                self.bases.pop(name, None)
        for rolled in step.rolled:
            if rolled.request_id in self.runner.requests:
                self._roll(rolled)

    def _roll(self, rolled: Rollover) -> None:
        state = self.runner.requests[rolled.request_id]
        a, b = rolled.cut
        params = state.sampling_params
        output_cut = b - a - rolled.num_prompt_cut
        at = max(a - state.num_prompt_tokens, 0)
        if penalised(params):
            if rolled.request_id not in self.forgotten:
                vocab_size = self.runner.input_batch.vocab_size
                self.forgotten[rolled.request_id] = ForgottenTokens(vocab_size)
            self.forgotten[rolled.request_id].add(
                state.prompt_token_ids[a : a + rolled.num_prompt_cut],
                state.output_token_ids[at : at + output_cut],
            )
        if params.min_tokens and output_cut:
            state.sampling_params = params = params.clone()
            params.min_tokens = max(0, params.min_tokens - output_cut)
        prompt = rolled.num_prompt_tokens
        state.prompt_token_ids = rolled.tokens[:prompt]
        state.num_prompt_tokens = prompt
        state.output_token_ids = rolled.tokens[prompt:]
        state.num_computed_tokens = rolled.num_computed_tokens
        state.block_ids = (list(rolled.block_ids),)
        self.bases[rolled.request_id] = rolled.base
        # vLLM's own update of the step fills the row anew, as for any request that sat one out.
        self.runner.input_batch.remove_request(rolled.request_id)

    def positions(self, num_scheduled_tokens: np.ndarray) -> torch.Tensor | None:
        """What is added to the positions of a step, int64 [tokens]; None for nothing."""
        if not self.bases:
            return None
        bases = [self.bases.get(name, 0) for name in self.runner.input_batch.req_ids]
        if not any(bases):
            return None
        return torch.from_numpy(np.repeat(np.asarray(bases, np.int64), num_scheduled_tokens))

    def _forgotten_rows(self) -> list[ForgottenTokens | None]:
        if not self.forgotten:
            return []
        return [self.forgotten.get(name) for name in self.runner.input_batch.req_ids]


def _raise_positions(runner: Any, num_scheduled_tokens: np.ndarray) -> None:
    """After vLLM has prepared a step, slots included: positions become true indices."""
    rollovers: V1Rollovers | None = getattr(runner, _ON_RUNNER, None)
    more = None if rollovers is None else rollovers.positions(num_scheduled_tokens)
    if more is not None:
        runner.positions[: len(more)] += more.to(runner.positions.device, non_blocking=True)


class V2Rollovers:
    """For ``v1/worker/gpu/model_runner.py``.

    A stream's row of the runner's tables is written over in place, by the runner's own staged
    writes, which run on the GPU in the order of the steps. What the sampler has counted of a stream
    stays where it is.
    """

    def __init__(self, runner: Any) -> None:
        self.runner = runner
        self.count = 0
        self.bases = np.zeros(runner.max_num_reqs, dtype=np.int64)
        self._new_bases: dict[str, int] = {}
        # Looked for now, not when the first prompt is fed: of an unknown version this says so.
        # Only the last rank of a pipeline samples.
        self._sampler = None if runner.sampler is None else compat.prompt_states(runner.sampler)
        compat.wrap_method_of(runner.model_state, "add_request", self._with_base)
        compat.wrap_method_of(runner.model_state, "prepare_attn", self._with_true_positions)

    def before_step(self, scheduler_output: SchedulerOutput) -> None:
        step = rollovers_of(scheduler_output)
        self.count += len(step.rolled)
        self._new_bases = step.bases
        rows = self.runner.req_states.req_id_to_index
        preempted = scheduler_output.preempted_req_ids or ()
        rolled = [r for r in step.rolled if r.request_id in rows and r.request_id not in preempted]
        for one in rolled:
            self._roll(rows[one.request_id], one)
        if rolled and not scheduler_output.scheduled_new_reqs:
            # vLLM applies block tables before every step, these when requests join; and only once
            # a step, since its buffers are as many as there are steps in flight.
            self.runner.req_states.apply_staged_writes()

    def _roll(self, row: int, rolled: Rollover) -> None:
        states = self.runner.req_states
        length = len(rolled.tokens)
        decodes = length - rolled.num_computed_tokens <= 1
        states.prompt_len.np[row] = rolled.num_prompt_tokens
        # Up to here tokens are read from the list; from here on, the one that was sampled last.
        states.prefill_len.np[row] = rolled.num_prompt_tokens if decodes else length
        states.total_len.stage_write_elem(row, length)
        states.all_token_ids.stage_write(row, 0, rolled.tokens)
        states.num_computed_tokens.stage_write_elem(row, rolled.num_computed_tokens)
        states.num_computed_tokens_np[row] = rolled.num_computed_tokens
        states.num_computed_prefill_tokens[row] = rolled.num_computed_tokens
        self.runner.block_tables.append_block_ids(row, (rolled.block_ids,), overwrite=True)
        self.bases[row] = rolled.base
        if rolled.fed:
            self._tell_sampler(row, rolled.fed)

    def _tell_sampler(self, row: int, fed: list[int]) -> None:
        """The prompt has become longer: for its penalties, and for ``min_tokens``."""
        if self._sampler is None:
            return
        logit_bias, penalties = self._sampler
        logit_bias.min_lens.np[row] += len(fed)
        if penalties.use_penalty[row]:
            mask = penalties.prompt_bin_mask
            bits = np.zeros(mask.shape[1] * 32, dtype=np.uint8)
            bits[fed] = 1
            words = np.packbits(bits, bitorder="little").view("<i4")
            mask[row] |= torch.from_numpy(words).to(mask.device)

    def _with_base(self, add_request: Any) -> Any:
        def add(req_index: int, new_req_data: Any) -> None:
            self.bases[req_index] = self._new_bases.get(new_req_data.req_id, 0)
            add_request(req_index, new_req_data)

        return add

    def _with_true_positions(self, prepare_attn: Any) -> Any:
        """Here slots are done, and metadata, model and the sampler's noise are yet to come."""

        def prepare(input_batch: Any, *args: Any, **kwargs: Any) -> Any:
            bases = self.bases[input_batch.idx_mapping_np]
            if bases.any():
                more = np.repeat(bases, input_batch.num_scheduled_tokens)
                positions = input_batch.positions[: len(more)]
                positions += async_tensor_h2d(more, device=positions.device)
            return prepare_attn(input_batch, *args, **kwargs)

        return prepare
