"""What the engine core refuses or gives up reaches the client as the status that it is.

The core's last output of a request can bring a :class:`~vllm_sink.requests.refusal.Refusal`; vLLM
would make an answer with ``"finish_reason": "error"`` or HTTP 500 of it. Here it becomes an
exception in the task that waits for the answer, which every route turns into its own error; a
streamed answer has not begun by then (``caller_middleware.py``).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from vllm.exceptions import GracefulHTTPError

from vllm_sink.requests.client_request import CALLER, Caller
from vllm_sink.requests.refusal import Refusal

#: The attribute of vLLM's ``RequestOutputCollector`` that holds who waits for it.
_CALLER = "sink_caller"


def remembering(add_request: Callable[..., None]) -> Callable[..., None]:
    """``OutputProcessor.add_request``: this task's caller waits for what comes in the queue."""

    def add(self: Any, request: Any, *args: Any, **kwargs: Any) -> None:
        add_request(self, request, *args, **kwargs)
        caller = CALLER.get(None)
        state = self.request_states.get(request.request_id)
        if caller is not None and state is not None and state.queue is not None:
            setattr(state.queue, _CALLER, caller)

    return add


def with_refusals(process_outputs: Callable[..., Any]) -> Callable[..., Any]:
    """``OutputProcessor.process_outputs`` that hands refusals on."""

    def process(self: Any, engine_core_outputs: Any, *args: Any, **kwargs: Any) -> Any:
        refused = [
            (output, refusal)
            for output in engine_core_outputs
            if output.stop_reason is not None and (refusal := Refusal.of(output)) is not None
        ]
        to_abort = []
        for output, refusal in refused:
            engine_core_outputs.remove(output)
            to_abort += _end(self, output.request_id, refusal)
        for output in engine_core_outputs:
            state = self.request_states.get(output.request_id)
            if state is not None and state.is_prefilling:  # its first output
                caller: Caller | None = getattr(state.queue, _CALLER, None)
                if caller is not None:
                    caller.answered()
        processed = process_outputs(self, engine_core_outputs, *args, **kwargs)
        processed.reqs_to_abort.extend(to_abort)
        return processed

    return process


def _end(processor: Any, request_id: str, refusal: Refusal) -> list[str]:
    """Tell who waits; the requests that are to be aborted in the engine core."""
    state = processor.request_states.get(request_id)
    if state is None:
        return []
    error = GracefulHTTPError(refusal.message, refusal.status)
    error.retry_after = refusal.retry_after  # type: ignore[attr-defined]
    queue = state.queue
    family = [request_id] if state.parent_req is None else [*state.parent_req.child_requests]
    aborted: list[str] = processor.abort_requests(family, internal=True)
    if queue is not None:
        caller: Caller | None = getattr(queue, _CALLER, None)
        if caller is not None:
            caller.refuse(error)
        queue.put(error)
    return [name for name in aborted if name != request_id]
