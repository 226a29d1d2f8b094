"""A request that cannot be added to the engine ends alone.

vLLM reports an error to one client where it decodes a request (``EngineCoreProc.
process_input_sockets``); where it adds one to the scheduler (``EngineCoreProc.
_handle_client_request``) an exception ends the engine, and every stream with it. An exception of a
*step* belongs to no request: there vLLM has no place to end one, and every client gets the error
that the engine is dead. patches/vllm-0.32/0012 shows the change that this needs.

Upstream: none known. Can go when ``EngineCoreProc`` reports an error of ``add_request`` to the
request's client.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from vllm.logger import init_logger
from vllm.v1.engine import EngineCoreOutputs

from vllm_sink.config.kv_policy import policy_of
from vllm_sink.requests.refusal import RefusedError

logger = init_logger("vllm.sink")


def end_one_request(
    add_request: Callable[..., None], core: Any, request: Any, *args: Any, **kwargs: Any
) -> None:
    """``EngineCore.add_request`` that ends a failed request instead of the engine."""
    try:
        add_request(request, *args, **kwargs)
    except RefusedError as refused:
        # Only a request with a client is refused (ServerFields.served), so there is a queue.
        core.scheduler.give_up(request.request_id)
        output = refused.refusal.output(request.request_id)
        ended = EngineCoreOutputs(finished_requests={request.request_id}, outputs=[output])
        core.output_queue.put_nowait((request.client_index, ended))
    except Exception:
        send_errors = getattr(core, "_send_error_outputs_to_client", None)
        if send_errors is None or policy_of(core.vllm_config) is None:
            raise  # the engine is in its caller's process, which gets the exception
        logger.exception(
            "Request %s could not be added to the engine: it is ended, its client is answered "
            "with HTTP 500, and no other request is affected. This is a bug in vllm-sink or "
            "vLLM; please report it with the traceback below",
            request.request_id,
        )
        core.scheduler.give_up(request.request_id)
        send_errors([request.request_id], request.client_index)
