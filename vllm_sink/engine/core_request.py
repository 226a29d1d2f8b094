"""What the server itself says of a request, on its way to the engine core.

A client can write ``SamplingParams.extra_args``, so nothing that the server decides travels there:
the request that goes to the engine core (``vllm/v1/engine/__init__.py``) has more fields, which
only the door sets. msgspec checks their types where they are decoded.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from vllm.v1.engine import EngineCoreRequest
from vllm.v1.request import Request

from vllm_sink import compat
from vllm_sink.engine.isolation import ending_one
from vllm_sink.policy import require_int
from vllm_sink.request_args import SINK_TOKENS, sink_tokens_of

#: The attribute of vLLM's ``Request`` that holds its tenant.
_TENANT = "sink_tenant"


class SinkRequest(EngineCoreRequest, kw_only=True):  # type: ignore[call-arg]
    """vLLM's request with what the server says of it.

    Attributes:
        tenant: whose it is; None where nobody looked.
    """

    tenant: str | None = None


def seal(request: EngineCoreRequest) -> SinkRequest:
    """The same request with the server's fields, empty as yet; itself if it has them."""
    if isinstance(request, SinkRequest):
        return request
    fields = EngineCoreRequest.__struct_fields__  # type: ignore[attr-defined]
    return SinkRequest(**{name: getattr(request, name) for name in fields})


def tenant_of(request: Request) -> str | None:
    """The tenant of a request in the scheduler, if the server looked for one."""
    tenant: str | None = getattr(request, _TENANT, None)
    return tenant


def install_in_core() -> None:
    """Let this process's engine core read the fields.

    vLLM decodes requests in a thread of its own (``EngineCoreProc.process_input_sockets``) and
    answers an error there to the one client whose request it is; so what the scheduler reads of a
    request is looked at here.
    """
    from vllm.v1.engine.core import EngineCore

    compat.set_core_request(SinkRequest)
    compat.wrap(Request, "from_engine_core_request", carrying)
    compat.wrap(EngineCore, "add_request", ending_one)


def carrying(make: Callable[..., Request]) -> Callable[..., Request]:
    """``Request.from_engine_core_request`` that keeps the server's fields."""

    def made(cls: type, request: EngineCoreRequest, *args: Any, **kwargs: Any) -> Request:
        result = make(cls, request, *args, **kwargs)
        require_int(SINK_TOKENS, sink_tokens_of(request.sampling_params, 0), 0)
        setattr(result, _TENANT, getattr(request, "tenant", None))
        return result

    return made
