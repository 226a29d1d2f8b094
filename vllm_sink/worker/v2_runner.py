"""The adapter of vLLM's V2 model runner (``v1/worker/gpu/model_runner.py``).

A stream's row of the runner's tables is overwritten in place, by the runner's own staged writes,
which run on the GPU in the order of the steps. The sampler's counts of a stream stay.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from typing_extensions import override
from vllm.utils.torch_utils import async_tensor_h2d
from vllm.v1.attention.backend import CommonAttentionMetadata

from vllm_sink import compat
from vllm_sink.attention.row_policies import repeated
from vllm_sink.compat.install import install_on
from vllm_sink.policy import StreamPolicy
from vllm_sink.requests.options import stream_policy_of
from vllm_sink.segments import Rollover, StepRollovers
from vllm_sink.worker.runner_tables import RunnerTables

if TYPE_CHECKING:
    from vllm.v1.core.sched.output import SchedulerOutput


class V2RunnerTables(RunnerTables):
    """Keeps ``S``, ``W`` and the base of each row of the runner's table of requests.

    Attributes:
        bases: int64 [max_num_reqs].
    """

    def __init__(self, runner: Any, default: StreamPolicy) -> None:
        super().__init__(runner, default)
        self.bases = np.zeros(runner.max_num_reqs, dtype=np.int64)
        self._policies = repeated(default, runner.max_num_reqs)
        self._new_bases: dict[str, int] = {}
        # Rows of the step that is being built; None in a warm-up.
        self._rows: np.ndarray | None = None
        # Looked up now, so that an unknown version fails here and not when a prompt is fed. Only
        # the last rank of a pipeline samples.
        self._sampler = None if runner.sampler is None else compat.prompt_states(runner.sampler)
        install_on(runner, self, "V2 runner")

    @override
    def kept(self, step: CommonAttentionMetadata) -> np.ndarray:
        policies = repeated(self.default, step.num_reqs)
        if self._rows is not None:
            rows = self._rows[: step.num_reqs]
            policies[:, : len(rows)] = self._policies[:, rows]
        return policies

    @override
    def update(self, scheduler_output: SchedulerOutput, rollovers: StepRollovers) -> None:
        self._new_bases = rollovers.bases
        rows = self.runner.req_states.req_id_to_index
        preempted = scheduler_output.preempted_req_ids or ()
        rolled = [
            r for r in rollovers.rolled if r.request_id in rows and r.request_id not in preempted
        ]
        for rollover in rolled:
            self._roll(rows[rollover.request_id], rollover)
        if rolled and not scheduler_output.scheduled_new_reqs:
            # vLLM applies block tables before every step, but these only when requests join. At
            # most once a step: there is one buffer for each step in flight.
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
            self._lengthen_prompt(row, rolled.fed)

    def _lengthen_prompt(self, row: int, tokens: list[int]) -> None:
        """Lengthen the sampler's prompt, for its penalties and for ``min_tokens``."""
        if self._sampler is None:
            return
        logit_bias, penalties = self._sampler
        logit_bias.min_lens.np[row] += len(tokens)
        if penalties.use_penalty[row]:
            mask = penalties.prompt_bin_mask
            bits = np.zeros(mask.shape[1] * 32, dtype=np.uint8)
            bits[tokens] = 1
            words = np.packbits(bits, bitorder="little").view("<i4")
            mask[row] |= torch.from_numpy(words).to(mask.device)

    # -- the model state's methods, wrapped -------------------------------------------------------

    def add_request(
        self, add_request: Callable[..., None], state: Any, req_index: int, new_req_data: Any
    ) -> None:
        """``add_request``: a request joins the runner's table."""
        self.bases[req_index] = self._new_bases.get(new_req_data.req_id, 0)
        policy = stream_policy_of(new_req_data.sampling_params, self.default)
        self._policies[:, req_index] = policy
        add_request(req_index, new_req_data)

    def prepare_attn(
        self, prepare_attn: Callable[..., Any], state: Any, input_batch: Any, *args: Any, **kw: Any
    ) -> Any:
        """``prepare_attn``: adds bases after slots are computed, before positions are used."""
        rows = input_batch.idx_mapping_np
        bases = self.bases[rows]
        if bases.any():
            token_bases = np.repeat(bases, input_batch.num_scheduled_tokens)
            positions = input_batch.positions[: len(token_bases)]
            positions += async_tensor_h2d(token_bases, device=positions.device)
        self._rows = rows
        try:
            return prepare_attn(input_batch, *args, **kw)
        finally:
            self._rows = None
