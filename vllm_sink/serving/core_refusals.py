"""Refusals of the engine core reach the client with their HTTP status.

The core's last output of a request can carry a :class:`~vllm_sink.requests.refusal.Refusal`; vLLM
would turn it into an answer with ``"finish_reason": "error"`` or into HTTP 500. Here it becomes an
exception in the task that waits for the answer, which every route turns into its own error; a
streamed answer has not begun by then (``request_middleware.py``).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from vllm.exceptions import GracefulHTTPError

from vllm_sink.client_request import CLIENT_REQUEST, ClientRequest
from vllm_sink.compat.attached import Attached
from vllm_sink.requests.refusal import Refusal

#: On vLLM's ``RequestOutputCollector``: the client that waits for it.
_CLIENT: Attached[ClientRequest | None] = Attached("sink_client_request", None)


def remember_client(
    add_request: Callable[..., None], processor: Any, request: Any, *args: Any, **kwargs: Any
) -> None:
    """``OutputProcessor.add_request``: remembers which client waits for the request's queue."""
    add_request(request, *args, **kwargs)
    client = CLIENT_REQUEST.get(None)
    state = processor.request_states.get(request.request_id)
    if client is not None and state is not None and state.queue is not None:
        _CLIENT.set(state.queue, client)


def raise_refusals(
    process_outputs: Callable[..., Any],
    processor: Any,
    engine_core_outputs: Any,
    *args: Any,
    **kwargs: Any,
) -> Any:
    """``OutputProcessor.process_outputs``: a refusal becomes an exception in the client's task."""
    refused = [
        (output, refusal)
        for output in engine_core_outputs
        if output.stop_reason is not None and (refusal := Refusal.of(output)) is not None
    ]
    to_abort = []
    for output, refusal in refused:
        engine_core_outputs.remove(output)
        to_abort += _end(processor, output.request_id, refusal)
    for output in engine_core_outputs:
        state = processor.request_states.get(output.request_id)
        if state is not None and state.is_prefilling:  # its first output
            client = _CLIENT.get(state.queue)
            if client is not None:
                client.answered()
    processed = process_outputs(engine_core_outputs, *args, **kwargs)
    processed.reqs_to_abort.extend(to_abort)
    return processed


def _end(processor: Any, request_id: str, refusal: Refusal) -> list[str]:
    """Pass a refusal to the client; return the requests to abort in the engine core."""
    state = processor.request_states.get(request_id)
    if state is None:
        return []
    error = GracefulHTTPError(refusal.message, refusal.status)
    error.retry_after = refusal.retry_after  # type: ignore[attr-defined]
    queue = state.queue
    family = [request_id] if state.parent_req is None else [*state.parent_req.child_requests]
    aborted: list[str] = processor.abort_requests(family, internal=True)
    if queue is not None:
        client = _CLIENT.get(queue)
        if client is not None:
            client.refuse(error)
        queue.put(error)
    return [name for name in aborted if name != request_id]
