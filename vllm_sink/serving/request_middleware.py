"""The HTTP request that a task answers, kept for its checks; refusals become statuses.

A streamed answer begins before its request reaches the engine: its status is 200 by then, and a
refusal would be an event in its body. So an event stream is held until the engine core begins the
answer, even if the route sends events of its own before that (Responses); a request that is refused
until then, by checks, by the engine core, or because it waited too long, is answered with its own
status. (With ``--sse-keep-alive-interval``, until the first comment.)
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable
from typing import Any

from vllm_sink.client_request import CLIENT_REQUEST, ClientRequest

_Message = dict[str, Any]
_Send = Callable[[_Message], Awaitable[None]]
_Receive = Callable[[], Awaitable[_Message]]
_App = Callable[[_Message, _Receive, _Send], Awaitable[None]]


class RequestMiddleware:
    """ASGI: one :class:`~vllm_sink.client_request.ClientRequest` for each request."""

    def __init__(self, app: _App) -> None:
        self.app = app

    async def __call__(self, scope: _Message, receive: _Receive, send: _Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        client = ClientRequest(scope["headers"])
        CLIENT_REQUEST.set(client)
        if scope["type"] == "websocket":
            await self.app(scope, receive, send)
            return

        async def tee() -> _Message:
            message = await receive()
            if message["type"] == "http.request" and scope["method"] == "POST":
                client.receive(message.get("body", b""))
            return message

        await self.app(scope, tee, _HeldResponse(scope, send, client).send)


class _HeldResponse:
    """A response whose event stream begins when it is known that it will be answered.

    ::

        start (events, 200) ── held ──┬─ answered ─> start, events
                                      └─ refused ──> status and error; the app's own is dropped
    """

    def __init__(self, scope: _Message, send: _Send, client: ClientRequest) -> None:
        self._scope = scope
        self._send = send
        self._client = client
        self._held: list[_Message] = []
        self._holding = False
        self._dropping = False
        self._lock = asyncio.Lock()
        self._release: asyncio.Task[None] | None = None

    async def send(self, message: _Message) -> None:
        async with self._lock:
            if self._dropping:
                return
            if message["type"] == "http.response.start" and self._is_stream(message):
                self._holding = True
                self._held = [message]
                # Its callback may be called by another task, while this one waits for tokens.
                self._client.on_settled(self._release_soon)
                return
            if self._holding:
                self._held.append(message)
                last = not message.get("more_body", False)
                # A comment that keeps the connection alive (--sse-keep-alive-interval) must go out
                # now; an immediate refusal comes long before the first one.
                comment = message.get("body", b"").startswith(b":")
                if self._client.settled or last or comment:
                    await self._let_go()
                return
            if message["type"] == "http.response.start":
                message = {**message, "headers": self._with_retry_after(message)}
            await self._send(message)

    def _with_retry_after(self, start: _Message) -> list[tuple[bytes, bytes]]:
        """The headers, with Retry-After for 429 and 503."""
        headers = list(start["headers"])
        if start["status"] in (429, 503) and not any(
            n.lower() == b"retry-after" for n, _ in headers
        ):
            seconds = getattr(self._client.refusal, "retry_after", 1)
            headers.append((b"retry-after", str(seconds).encode()))
        return headers

    def _is_stream(self, start: _Message) -> bool:
        return (
            self._scope["method"] == "POST"
            and start["status"] == 200
            and any(
                name.lower() == b"content-type" and value.startswith(b"text/event-stream")
                for name, value in start["headers"]
            )
        )

    def _release_soon(self) -> None:
        # One iteration of the loop later: all prompts of a request have been seen by then.
        self._release = asyncio.ensure_future(self._release_now())

    async def _release_now(self) -> None:
        async with self._lock:
            # Until there is a body to send, the status can still change.
            if self._holding and (self._client.refusal is not None or len(self._held) > 1):
                await self._let_go()

    async def _let_go(self) -> None:
        self._holding = False
        held, self._held = self._held, []
        if self._client.refusal is not None:
            self._dropping = True
            held = self._refused(self._client.refusal)
        for message in held:
            await self._send(message)

    def _refused(self, error: Exception) -> list[_Message]:
        """The answer that this route gives to an error before its first event."""
        from vllm.entrypoints.serve.exception_handling.error_response import create_error_response

        response = create_error_response(error)
        status, body = response.error.code, response.model_dump_json().encode()
        # A route of another API has its own shape of an error (vLLM: anthropic/api_router.py).
        module = sys.modules.get(getattr(self._scope.get("endpoint"), "__module__", ""))
        translate = getattr(module, "translate_error_response", None)
        if translate is not None:
            body = bytes(translate(response).body)
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
        ]
        start = {"type": "http.response.start", "status": status, "headers": headers}
        return [
            {**start, "headers": self._with_retry_after(start)},
            {"type": "http.response.body", "body": body, "more_body": False},
        ]


def from_request(headers: dict[str, str], request: Any) -> ClientRequest:
    """The client's request where requests do not come through ASGI: in a replica of Ray's.

    Args:
        headers: as Ray passes them on.
        request: one of vLLM's request models, as pydantic read it.
    """
    large = {"messages", "prompt", "input", "token_ids"}
    fields = json.loads(request.model_dump_json(exclude_unset=True, exclude=large))
    encoded = [(k.lower().encode("latin-1"), v.encode("latin-1")) for k, v in headers.items()]
    return ClientRequest(encoded, fields)
