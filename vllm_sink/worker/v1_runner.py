"""The adapter of vLLM's V1 model runner (``v1/worker/gpu_model_runner.py``), on CPUs and GPUs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from typing_extensions import override
from vllm.v1.attention.backend import CommonAttentionMetadata

from vllm_sink.compat.install import install_on
from vllm_sink.policy import StreamPolicy
from vllm_sink.requests.options import stream_policy_of
from vllm_sink.segments import Rollover, StepRollovers
from vllm_sink.worker.penalty_history import PenaltyHistory, apply_with_history, has_penalty
from vllm_sink.worker.runner_tables import RunnerTables

if TYPE_CHECKING:
    from vllm.v1.core.sched.output import SchedulerOutput


class V1RunnerTables(RunnerTables):
    """Reads the batch as a step is built; rewrites ``CachedRequestState`` when a stream rolls."""

    def __init__(self, runner: Any, default: StreamPolicy) -> None:
        super().__init__(runner, default)
        self.bases: dict[str, int] = {}
        self.histories: dict[str, PenaltyHistory] = {}
        install_on(runner, self, "V1 runner")

    @override
    def kept(self, step: CommonAttentionMetadata) -> np.ndarray:
        requests = self.runner.requests
        ids: Sequence[str | None] = self.runner.input_batch.req_ids[: step.num_reqs]
        rows = [
            stream_policy_of(state.sampling_params, self.default)
            if request_id is not None and (state := requests.get(request_id)) is not None
            else self.default
            for request_id in ids
        ]
        rows += [self.default] * (step.num_reqs - len(rows))
        return np.array(rows, dtype=np.int32).T

    @override
    def update(self, scheduler_output: SchedulerOutput, rollovers: StepRollovers) -> None:
        if self.bases or self.histories:
            for name in scheduler_output.finished_req_ids:
                self.bases.pop(name, None)
                self.histories.pop(name, None)
            # A stream that resumes after a preemption starts again.
            for name in scheduler_output.scheduled_cached_reqs.resumed_req_ids:
                self.bases.pop(name, None)
        for rolled in rollovers.rolled:
            if rolled.request_id in self.runner.requests:
                self._roll(rolled)

    def _roll(self, rolled: Rollover) -> None:
        state = self.runner.requests[rolled.request_id]
        a, b = rolled.cut
        params = state.sampling_params
        output_cut = b - a - rolled.num_prompt_cut
        at = max(a - state.num_prompt_tokens, 0)
        if has_penalty(params):
            if rolled.request_id not in self.histories:
                vocab_size = self.runner.input_batch.vocab_size
                self.histories[rolled.request_id] = PenaltyHistory(vocab_size)
            self.histories[rolled.request_id].add(
                state.prompt_token_ids[a : a + rolled.num_prompt_cut],
                state.output_token_ids[at : at + output_cut],
            )
        if params.min_tokens and output_cut:
            state.sampling_params = params = params.clone()
            params.min_tokens = max(0, params.min_tokens - output_cut)
        prompt_tokens = rolled.num_prompt_tokens
        state.prompt_token_ids = rolled.tokens[:prompt_tokens]
        state.num_prompt_tokens = prompt_tokens
        state.output_token_ids = rolled.tokens[prompt_tokens:]
        state.num_computed_tokens = rolled.num_computed_tokens
        state.block_ids = (list(rolled.block_ids),)
        self.bases[rolled.request_id] = rolled.base
        # vLLM's own update fills the row again, as for any request that skipped a step.
        self.runner.input_batch.remove_request(rolled.request_id)

    # -- the runner's methods, wrapped ------------------------------------------------------------

    def prepare_inputs(
        self,
        prepare_inputs: Callable[..., Any],
        runner: Any,
        scheduler_output: Any,
        num_scheduled_tokens: np.ndarray,
    ) -> Any:
        """``_prepare_inputs``: adds bases after slots are computed, before positions are used."""
        prepared = prepare_inputs(scheduler_output, num_scheduled_tokens)
        bases = self.token_bases(num_scheduled_tokens)
        if bases is not None:
            positions = self.runner.positions
            positions[: len(bases)] += bases.to(positions.device, non_blocking=True)
        return prepared

    def token_bases(self, num_scheduled_tokens: np.ndarray) -> torch.Tensor | None:
        """The base of each token of a step, int64 [tokens]; None where all are zero."""
        if not self.bases:
            return None
        bases = [self.bases.get(name, 0) for name in self.runner.input_batch.req_ids]
        if not any(bases):
            return None
        return torch.from_numpy(np.repeat(np.asarray(bases, np.int64), num_scheduled_tokens))

    def apply_penalties(
        self,
        apply_penalties: Callable[..., torch.Tensor],
        sampler: Any,
        logits: torch.Tensor,
        sampling_metadata: Any,
        output_token_ids: list[list[int]],
    ) -> torch.Tensor:
        """The sampler's ``apply_penalties``: counts the tokens that have rolled out, too."""
        histories: list[PenaltyHistory | None] = []
        if self.histories and not sampling_metadata.no_penalties:
            histories = [self.histories.get(name) for name in self.runner.input_batch.req_ids]
        if not any(histories):
            return apply_penalties(logits, sampling_metadata, output_token_ids)
        return apply_with_history(histories, logits, sampling_metadata, output_token_ids)
