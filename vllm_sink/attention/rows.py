"""How many tokens each row of a batch pins, told by vLLM's model runner."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from vllm.v1.attention.backend import CommonAttentionMetadata

from vllm_sink import compat
from vllm_sink.request_args import sink_tokens_of


class BatchRows(ABC):
    """``S`` of each row of a step."""

    @abstractmethod
    def sink_tokens(self, step: CommonAttentionMetadata) -> np.ndarray:
        """``S`` of the first ``step.num_reqs`` rows, int32; the engine's own for padding."""


class _V1Runner(Protocol):
    requests: Mapping[str, Any]
    input_batch: Any


class V1Rows(BatchRows):
    """Reads the batch of the V1 runner (``v1/worker/gpu_model_runner.py``) as a step is built."""

    def __init__(self, runner: _V1Runner, default_sink_tokens: int) -> None:
        self._runner = runner
        self._default = default_sink_tokens

    def sink_tokens(self, step: CommonAttentionMetadata) -> np.ndarray:
        requests = self._runner.requests
        ids: Sequence[str | None] = self._runner.input_batch.req_ids[: step.num_reqs]
        rows = [
            sink_tokens_of(state.sampling_params, self._default)
            if request_id is not None and (state := requests.get(request_id)) is not None
            else self._default
            for request_id in ids
        ]
        rows += [self._default] * (step.num_reqs - len(rows))
        return np.array(rows, dtype=np.int32)


class V2Rows(BatchRows):
    """Listens to the V2 runner (``v1/worker/gpu/model_runner.py``), which has a table of requests:
    which of them join it, and which of its rows a step is about.
    """

    def __init__(self, model_state: Any, max_requests: int, default_sink_tokens: int) -> None:
        self._default = default_sink_tokens
        self._sinks = np.full(max_requests, default_sink_tokens, dtype=np.int32)
        # Of the step that is being built; nothing in a warm-up's.
        self._known: np.ndarray | None = None
        compat.wrap_method_of(model_state, "add_request", self._with_sinks)
        compat.wrap_method_of(model_state, "prepare_attn", self._with_known_rows)

    def _with_sinks(self, add_request: Any) -> Any:
        def add(req_index: int, new_req_data: Any) -> None:
            self._sinks[req_index] = sink_tokens_of(new_req_data.sampling_params, self._default)
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

    def sink_tokens(self, step: CommonAttentionMetadata) -> np.ndarray:
        rows = np.full(step.num_reqs, self._default, dtype=np.int32)
        if self._known is not None:
            known = self._known[: step.num_reqs]
            rows[: len(known)] = self._sinks[known]
        return rows


def rows_of(runner: Any, use_v2: bool, default_sink_tokens: int) -> BatchRows:
    """The rows of a model runner."""
    if use_v2:
        return V2Rows(runner.model_state, runner.max_num_reqs, default_sink_tokens)
    return V1Rows(runner, default_sink_tokens)
