"""Draining over HTTP: 503 for new requests, an error event at the end of a stream that is cut."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

from vllm_sink.serving.drain import ENDED, ERROR_TYPE, REFUSED, STATUS, Drain, drain_of

_Message = dict[str, Any]
_Send = Callable[[_Message], Awaitable[None]]
_App = Callable[[_Message, Any, _Send], Awaitable[None]]


def error(message: str) -> dict[str, dict[str, Any]]:
    """An error in the format of OpenAI's API."""
    return {"error": {"message": message, "type": ERROR_TYPE, "param": None, "code": STATUS}}


def last_event(message: str = ENDED) -> str:
    """The end of an event stream that is cut."""
    return f"data: {json.dumps(error(message))}\n\ndata: [DONE]\n\n"


class DrainMiddleware:
    """ASGI: applies the engine's :class:`~vllm_sink.serving.drain.Drain` to its requests."""

    def __init__(self, app: _App) -> None:
        self.app = app

    async def __call__(self, scope: _Message, receive: Any, send: _Send) -> None:
        # vLLM's server puts its engine there (launchers/api_server/app_state.py).
        engine = getattr(scope["app"].state, "engine_client", None) if "app" in scope else None
        if scope["type"] != "http" or engine is None:
            await self.app(scope, receive, send)
            return
        drain = drain_of(engine)
        if scope["method"] != "POST":
            # /metrics is still read; /health tells the sender of requests to stop.
            if drain.begun and scope["path"] == "/health":
                await _answer(send, REFUSED)
            else:
                await self.app(scope, receive, send)
        elif drain.begun:
            await _answer(send, REFUSED)
        else:
            await self._watch(drain, scope, receive, send)

    async def _watch(self, drain: Drain, scope: _Message, receive: Any, send: _Send) -> None:
        """Run a request until it ends or must end."""
        response = _Response(send)
        with drain.live() as live:
            running = asyncio.ensure_future(self.app(scope, receive, response.send))
            expiry = asyncio.ensure_future(live.expired.wait())
            try:
                await asyncio.wait({running, expiry}, return_when=asyncio.FIRST_COMPLETED)
                if running.done():
                    return running.result()
                response.closed = True  # what the app still sends is dropped
                await response.end()
            finally:
                expiry.cancel()
                if not running.done():
                    running.cancel()
                    await asyncio.gather(running, return_exceptions=True)


class _Response:
    """What has been sent of a response."""

    def __init__(self, send: _Send) -> None:
        self._send = send
        self._started = self._events = self.closed = False

    async def send(self, message: _Message) -> None:
        if self.closed:
            return
        if message["type"] == "http.response.start":
            self._started = True
            self._events = any(
                name.lower() == b"content-type" and value.startswith(b"text/event-stream")
                for name, value in message["headers"]
            )
        await self._send(message)

    async def end(self) -> None:
        """End the response with the reason."""
        if not self._started:
            await _answer(self._send, ENDED)
            return
        body = last_event().encode() if self._events else b""
        await self._send({"type": "http.response.body", "body": body, "more_body": False})


async def _answer(send: _Send, message: str) -> None:
    body = json.dumps(error(message)).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"retry-after", b"1"),
        (b"connection", b"close"),  # the next one goes to another server
    ]
    await send({"type": "http.response.start", "status": STATUS, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": False})
