"""How many tokens each row of a batch pins."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from vllm_sink.engine.request_args import sink_tokens_of


class _Runner(Protocol):
    """The part of vLLM's V1 model runner that is read (``v1/worker/gpu_model_runner.py``)."""

    requests: Mapping[str, Any]
    input_batch: Any


class BatchRows:
    """Reads ``S`` of each row out of the model runner's own batch, at the moment of a step."""

    def __init__(self, runner: _Runner, default_sink_tokens: int) -> None:
        self._runner = runner
        self._default = default_sink_tokens

    def sink_tokens(self, num_rows: int) -> list[int]:
        """``S`` of the first ``num_rows`` rows; the engine's own for rows without a request."""
        requests = self._runner.requests
        ids: Sequence[str | None] = self._runner.input_batch.req_ids[:num_rows]
        rows = [
            sink_tokens_of(state.sampling_params, self._default)
            if request_id is not None and (state := requests.get(request_id)) is not None
            else self._default
            for request_id in ids
        ]
        return rows + [self._default] * (num_rows - len(rows))
