"""What each row of a batch keeps, told by vLLM's model runner."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from vllm.v1.attention.backend import CommonAttentionMetadata

from vllm_sink import compat
from vllm_sink.policy import StreamPolicy
from vllm_sink.requests.options import stream_policy_of


class RowPolicies(ABC):
    """``S`` and ``W`` of each row of a step."""

    @abstractmethod
    def kept(self, step: CommonAttentionMetadata) -> np.ndarray:
        """Int32 [2, step.num_reqs], ``S`` and ``W``; the engine's own for padding."""


class _V1Runner(Protocol):
    requests: Mapping[str, Any]
    input_batch: Any


class V1RowPolicies(RowPolicies):
    """Reads the batch of the V1 runner (``v1/worker/gpu_model_runner.py``) as a step is built."""

    def __init__(self, runner: _V1Runner, default: StreamPolicy) -> None:
        self._runner = runner
        self._default = default

    def kept(self, step: CommonAttentionMetadata) -> np.ndarray:
        requests = self._runner.requests
        ids: Sequence[str | None] = self._runner.input_batch.req_ids[: step.num_reqs]
        rows = [
            stream_policy_of(state.sampling_params, self._default)
            if request_id is not None and (state := requests.get(request_id)) is not None
            else self._default
            for request_id in ids
        ]
        rows += [self._default] * (step.num_reqs - len(rows))
        return np.array(rows, dtype=np.int32).T


class V2RowPolicies(RowPolicies):
    """Listens to the V2 runner (``v1/worker/gpu/model_runner.py``), which has a table of requests:
    which of them join it, and which of its rows a step is about.
    """

    def __init__(self, model_state: Any, max_requests: int, default: StreamPolicy) -> None:
        self._default = default
        self._kept = _repeated(default, max_requests)
        # Of the step that is being built; nothing in a warm-up's.
        self._known: np.ndarray | None = None
        compat.wrap_method_of(model_state, "add_request", self._with_policy)
        compat.wrap_method_of(model_state, "prepare_attn", self._with_known_rows)

    def _with_policy(self, add_request: Any) -> Any:
        def add(req_index: int, new_req_data: Any) -> None:
            self._kept[:, req_index] = stream_policy_of(new_req_data.sampling_params, self._default)
            add_request(req_index, new_req_data)

        return add

    def _with_known_rows(self, prepare_attn: Any) -> Any:
        def prepare(input_batch: Any, *args: Any, **kwargs: Any) -> Any:
            self._known = input_batch.idx_mapping_np
            try:
                return prepare_attn(input_batch, *args, **kwargs)
            finally:
                self._known = None

        return prepare

    def kept(self, step: CommonAttentionMetadata) -> np.ndarray:
        rows = _repeated(self._default, step.num_reqs)
        if self._known is not None:
            known = self._known[: step.num_reqs]
            rows[:, : len(known)] = self._kept[:, known]
        return rows


def _repeated(kept: StreamPolicy, rows: int) -> np.ndarray:
    """Int32 [2, rows]."""
    return np.repeat(np.array(kept, dtype=np.int32)[:, None], rows, axis=1)


def rows_of(runner: Any, use_v2: bool, default: StreamPolicy) -> RowPolicies:
    """The rows of a model runner."""
    if use_v2:
        return V2RowPolicies(runner.model_state, runner.max_num_reqs, default)
    return V1RowPolicies(runner, default)
