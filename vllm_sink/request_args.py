"""What a request carries for this project, and where: ``sink_tokens``, and its tenant's name."""

from __future__ import annotations

from typing import Any, Protocol

#: The key in ``vllm_xargs`` (HTTP) and in ``SamplingParams.extra_args`` (Python).
SINK_TOKENS = "sink_tokens"

#: The value that stands for "the whole leading system message", in chat requests.
SYSTEM = "system"


class _Params(Protocol):
    extra_args: dict[str, Any] | None


def sink_tokens_of(params: _Params | None, default: int) -> int:
    """``S`` of a request that has been checked; ``default`` if it names none."""
    extra = None if params is None else params.extra_args
    return default if not extra else extra.get(SINK_TOKENS, default)


#: The key under which a request's tenant travels; the server sets it, a client's own is dropped.
TENANT = "sink_tenant"


def tenant_of(params: _Params | None) -> str | None:
    """The tenant of a request, if the server looked for one."""
    extra = None if params is None else params.extra_args
    return None if not extra else extra.get(TENANT)


#: The key under which a request's admission travels from the renderer to its streams.
TICKET = "sink_ticket"


def misspelt(extra: dict[str, Any]) -> str | None:
    """A key that can only be meant for this project and is none of its own: vLLM passes on whatever
    a request carries, so nobody else would say."""
    known = (SINK_TOKENS, TENANT, TICKET)
    return next((key for key in extra if key.startswith("sink") and key not in known), None)
