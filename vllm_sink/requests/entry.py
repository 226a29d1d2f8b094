"""Where every request enters the engine, and is checked before anything is allocated.

Requests come by many routes (chats, batches, beams, tokens, tool turns of Responses, Python), and
all of them end in ``AsyncLLM.add_request`` or ``LLMEngine.add_request``, which turn them into an
engine's request in ``InputProcessor.process_inputs`` (vLLM: ``v1/engine/``)::

    route -> add_request ── its tenant                   401
                ├─ process_inputs ── checks.check        400, then the tenant's limits: 429
                └─ OutputProcessor.add_request ── it is counted

What a client may set is read here and nowhere else; what the engine core reads is settled here.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from contextvars import ContextVar
from typing import Any

from vllm.exceptions import VLLMValidationError
from vllm.v1.engine import EngineCoreRequest

from vllm_sink.client_request import CLIENT_REQUEST, ClientRequest
from vllm_sink.config.kv_policy import policy_of
from vllm_sink.config.tenancy import TenancyConfig
from vllm_sink.errors import PolicyError
from vllm_sink.requests.checks import check
from vllm_sink.requests.options import SYSTEM_TOKENS
from vllm_sink.tenancy import limits
from vllm_sink.tenancy.identity import tenant_of

#: Whether this task answers a client of a server: ``AsyncLLM`` does.
_SERVED: ContextVar[bool] = ContextVar("vllm_sink_served", default=False)


def checked(
    process_inputs: Callable[..., Any],
    processor: Any,
    request_id: str,
    prompt: Any,
    *args: Any,
    **kwargs: Any,
) -> Any:
    """``InputProcessor.process_inputs``: checks and settles what the request asks for."""
    request = process_inputs(request_id, prompt, *args, **kwargs)
    kv_policy = policy_of(processor.vllm_config)
    if kv_policy is None:
        return request
    system_tokens = prompt.get(SYSTEM_TOKENS) if isinstance(prompt, Mapping) else None
    return check(request, kv_policy, processor.vllm_config, system_tokens, _SERVED.get())


async def entered(
    add_request: Callable[..., Any],
    engine: Any,
    request_id: str,
    prompt: Any,
    params: Any,
    *args: Any,
    **kwargs: Any,
) -> Any:
    """``AsyncLLM.add_request``: checks a request, and passes a refusal to the middleware."""
    kv_policy = policy_of(engine.vllm_config)
    if kv_policy is None:
        return await add_request(request_id, prompt, params, *args, **kwargs)
    client = CLIENT_REQUEST.get(None)
    token = _SERVED.set(True)
    try:
        refuse_streaming_input(prompt)
        with _counted(engine, client):
            if isinstance(prompt, EngineCoreRequest):  # made by hand, past process_inputs
                prompt = check(prompt, kv_policy, engine.vllm_config, None, served=True)
            return await add_request(request_id, prompt, params, *args, **kwargs)
    except Exception as error:
        if client is not None:
            client.refuse(error)
        raise
    finally:
        _SERVED.reset(token)


def _counted(engine: Any, client: ClientRequest | None) -> AbstractContextManager[None]:
    """Count a tenant's request while it is added; a request from Python has no tenant.

    Raises:
        VLLMValidationError: its tenant cannot be determined.
        GracefulHTTPError: 401.
    """
    config = TenancyConfig.from_config(engine.vllm_config.additional_config)
    if client is None or not (config.on or config.counts):
        return nullcontext()
    try:
        tenant = tenant_of(config, client)
    except PolicyError as error:
        raise VLLMValidationError(str(error), parameter=error.field) from None
    return limits.entry(engine.output_processor, config, tenant)


def entered_from_python(
    add_request: Callable[..., Any],
    engine: Any,
    request_id: str,
    prompt: Any,
    params: Any,
    *args: Any,
    **kwargs: Any,
) -> Any:
    """``LLMEngine.add_request``: checks a request that is built by hand."""
    kv_policy = policy_of(engine.vllm_config)
    if kv_policy is not None and isinstance(prompt, EngineCoreRequest):
        prompt = check(prompt, kv_policy, engine.vllm_config, None)
    return add_request(request_id, prompt, params, *args, **kwargs)


def refuse_streaming_input(prompt: object) -> None:
    """Refuse a prompt that comes in pieces.

    At each piece vLLM turns the output so far into prompt, at any point of a rollover, and the
    stream outgrows the length that its reservation assumes.
    """
    if isinstance(prompt, AsyncGenerator):
        raise VLLMValidationError(
            "streaming input (an asynchronous generator as the prompt) is not allowed with "
            "--kv-policy; allowed: a request for each piece (the prefix cache has the others)",
            parameter="prompt",
        )
