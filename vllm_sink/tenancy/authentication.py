"""Who may call which route, with ``--sink-tenant-keys`` (vLLM's ``--middleware``).

vLLM's own key check covers routes that begin with /v1 and a few more prefixes, and knows one
tenant. Here every route but those for probes and monitoring needs a key, and a route that affects
more than the client's own request (others' requests by name, weights, sleep) needs an operator's.
So does a route that a later vLLM adds, until it is listed here.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import Any

from vllm.exceptions import GracefulHTTPError

from vllm_sink.client_request import ClientRequest
from vllm_sink.config.tenancy import TenancyConfig
from vllm_sink.errors import PolicyError
from vllm_sink.tenancy.identity import by_key

_Message = dict[str, Any]
_Send = Callable[[_Message], Awaitable[None]]
_Receive = Callable[[], Awaitable[_Message]]
_App = Callable[[_Message, _Receive, _Send], Awaitable[None]]

#: Routes of probes and Prometheus.
OPEN = ("/health", "/ping", "/version", "/load", "/metrics")

#: Routes of a tenant's own requests, and those that cost no more than reading a text.
TENANTS = (
    "/v1/models",
    "/v1/completions",
    "/v1/completions/render",
    "/v1/completions/derender",
    "/v1/chat/completions",
    "/v1/chat/completions/batch",
    "/v1/chat/completions/render",
    "/v1/chat/completions/derender",
    "/v1/responses",
    "/v1/responses/render",
    "/v1/messages",
    "/v1/messages/render",
    "/v1/messages/count_tokens",
    "/inference/v1/generate",
    "/invocations",
    "/generative_scoring",
    "/tokenize",
    "/detokenize",
)


class KeyMiddleware:
    """ASGI: checks a request's key, and whether its tenant may call the route."""

    def __init__(self, app: _App) -> None:
        self.app = app

    async def __call__(self, scope: _Message, receive: _Receive, send: _Send) -> None:
        path = None if scope["type"] not in ("http", "websocket") else _keys_file(scope)
        refusal = None if path is None else refusal_of(path, scope)
        if refusal is None:
            await self.app(scope, receive, send)
            return
        status, message = refusal
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008, "reason": message})
            return
        kind = "AuthenticationError" if status == HTTPStatus.UNAUTHORIZED else "PermissionError"
        error = {"message": message, "type": kind, "param": None, "code": status.value}
        body = json.dumps({"error": error}).encode()
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
        ]
        if status == HTTPStatus.UNAUTHORIZED:
            headers.append((b"www-authenticate", b"Bearer"))
        await send({"type": "http.response.start", "status": status.value, "headers": headers})
        await send({"type": "http.response.body", "body": body, "more_body": False})


def _keys_file(scope: _Message) -> str | None:
    """The file of keys of the server that gets a request."""
    engine = scope["app"].state.engine_client
    return TenancyConfig.from_config(engine.vllm_config.additional_config).keys_file


def refusal_of(keys_file: str, scope: _Message) -> tuple[HTTPStatus, str] | None:
    """Why a request is refused; None if it is allowed."""
    path = scope["path"].removeprefix(scope.get("root_path", ""))
    if scope.get("method") == "OPTIONS" or path in OPEN or path.startswith("/metrics/"):
        return None
    try:
        tenant = by_key(keys_file, ClientRequest(scope["headers"]))
    except PolicyError as error:
        return HTTPStatus.BAD_REQUEST, str(error)
    except GracefulHTTPError as error:
        return HTTPStatus(error.http_status), error.message
    if tenant.operator or path in TENANTS or path.startswith("/v1/models/"):
        return None
    return (
        HTTPStatus.FORBIDDEN,
        f"{path}: tenant {tenant.name!r} is not allowed; allowed: an operator "
        "(--sink-tenant-keys: operator)",
    )
