"""The server's own data on a request, on its way to the engine core.

A client can write ``SamplingParams.extra_args``, so nothing that the server decides travels there:
the request that goes to the engine core (``vllm/v1/engine/__init__.py``) has more fields, which
only ``checks.py`` sets. msgspec checks their types where they are decoded.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from vllm.v1.engine import EngineCoreRequest
from vllm.v1.request import Request

from vllm_sink.compat.attached import Attached
from vllm_sink.config.sections import require_int
from vllm_sink.policy import StreamPolicy
from vllm_sink.requests.options import SINK_TOKENS, WINDOW_TOKENS, stream_policy_of


@dataclass(frozen=True)
class ServerFields:
    """The server's own data on a request.

    Attributes:
        tenant: its tenant; None if not determined.
        stream: it may outgrow what can be computed again: its blocks are reserved when it arrives,
            and it is never preempted for another request.
        served: a client waits for it, which can be refused and must not wait forever; False where
            an engine is used from Python.
    """

    tenant: str | None = None
    stream: bool = False
    served: bool = False


class SinkRequest(EngineCoreRequest, kw_only=True):  # type: ignore[call-arg]
    """vLLM's request with the fields of :class:`ServerFields`."""

    tenant: str | None = None
    stream: bool = False
    served: bool = False


def seal(request: EngineCoreRequest) -> SinkRequest:
    """The same request with the server's fields at their defaults; itself if it has them."""
    if isinstance(request, SinkRequest):
        return request
    fields = EngineCoreRequest.__struct_fields__  # type: ignore[attr-defined]
    return SinkRequest(**{name: getattr(request, name) for name in fields})


#: On vLLM's ``Request``.
_FIELDS = Attached("sink_server_fields", ServerFields())


def server_fields(request: Request) -> ServerFields:
    """The server's data on a request in the scheduler."""
    return _FIELDS.get(request)


def set_server_fields(request: Request, fields: ServerFields) -> None:
    """What the server says of a request from now on."""
    _FIELDS.set(request, fields)


def carry_server_fields(
    make: Callable[..., Request], cls: type, request: EngineCoreRequest, *args: Any, **kwargs: Any
) -> Request:
    """``Request.from_engine_core_request`` that keeps the server's fields.

    vLLM decodes requests in a thread of its own (``EngineCoreProc.process_input_sockets``) and
    reports an error there to the request's client alone, so what the scheduler reads of a request
    is checked here.
    """
    made = make(request, *args, **kwargs)
    kept = stream_policy_of(request.sampling_params, StreamPolicy(0, 1))
    require_int(SINK_TOKENS, kept.sink_tokens, 0)
    require_int(WINDOW_TOKENS, kept.window_tokens, 1)
    if isinstance(request, SinkRequest):
        set_server_fields(made, ServerFields(request.tenant, request.stream, request.served))
    return made
