"""Whose request it is, for the bounded ``tenant`` label: the request's ``user``, or a header.

Wraps what renders a request (``OnlineRenderer``, ``vllm/renderers/online_renderer.py``): the one
place that all of OpenAI's endpoints pass, on the task that has the request's headers, before the
parameters that travel to the engine are made of it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from contextvars import ContextVar
from typing import Any

from vllm_sink.metrics.config import MetricsConfig
from vllm_sink.request_args import TENANT

#: The headers of the request that this task answers.
_HEADERS: ContextVar[list[tuple[bytes, bytes]]] = ContextVar("headers")

_App = Callable[[dict[str, Any], Any, Any], Awaitable[None]]


class TenantMiddleware:
    """ASGI: keeps a request's headers at hand, for ``--sink-tenant-label header:NAME``."""

    def __init__(self, app: _App) -> None:
        self.app = app

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            _HEADERS.set(scope["headers"])
        await self.app(scope, receive, send)


def set_headers(headers: Mapping[str, str]) -> None:
    """The same where requests do not come as ASGI: in a replica of Ray's."""
    _HEADERS.set([(k.lower().encode("latin-1"), v.encode("latin-1")) for k, v in headers.items()])


def with_tenant(
    config: MetricsConfig,
) -> Callable[[Callable[..., Awaitable[Any]]], Callable[..., Awaitable[Any]]]:
    """A wrapper of ``render_*`` that writes the tenant's name into the request."""

    def wrapper(render: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        async def rendered(self: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
            if getattr(request, "vllm_xargs", self) is not self:
                mine = {TENANT: _name(config, request)}
                request.vllm_xargs = {**(request.vllm_xargs or {}), **mine}
            return await render(self, request, *args, **kwargs)

        return rendered

    return wrapper


def _name(config: MetricsConfig, request: Any) -> str:
    """The tenant's name; empty if the request has none."""
    if config.header is None:
        return str(getattr(request, "user", None) or "")
    wanted = config.header.encode("latin-1")
    for name, value in _HEADERS.get([]):
        if name == wanted:  # ASGI has them in lower case
            return value.decode("latin-1")
    return ""
