"""Draining: which client gets what, and when; on a real event loop, without an engine."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.e2e.engines import tiny
from vllm_sink.config.middleware import DRAIN_MIDDLEWARE, REQUEST_MIDDLEWARE
from vllm_sink.serving import drain
from vllm_sink.serving.drain_middleware import DrainMiddleware

EVENTS = [(b"content-type", b"text/event-stream; charset=utf-8")]


class _Engine:
    """In place of the server's engine; only its identity matters here."""


@pytest.fixture
def engine() -> _Engine:
    return _Engine()


@pytest.fixture
def state(engine: _Engine) -> drain.Drain:
    return drain.drain_of(engine)


@pytest.fixture
def ask(engine: _Engine) -> Any:
    """Asks the server of this test's engine."""
    return lambda path, method="POST": _ask(engine, path, method)


async def _endless(scope: Any, receive: Any, send: Any) -> None:
    """An application that streams until it is cancelled; ``/quick`` ends at once."""
    await send({"type": "http.response.start", "status": 200, "headers": EVENTS})
    while scope["path"] != "/quick":
        await send({"type": "http.response.body", "body": b"data: {}\n\n", "more_body": True})
        await asyncio.sleep(0.01)
    await send({"type": "http.response.body", "body": b"data: [DONE]\n\n", "more_body": False})


async def _ask(engine: _Engine, path: str, method: str) -> tuple[int, bytes]:
    """Status and body of an answer."""
    sent: list[dict[str, Any]] = []

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    app = SimpleNamespace(state=SimpleNamespace(engine_client=engine))
    scope = {"type": "http", "method": method, "path": path, "app": app}
    await DrainMiddleware(_endless)(scope, None, send)
    assert [m["type"] for m in sent].count("http.response.start") == 1
    assert not sent[-1]["more_body"]
    return sent[0]["status"], b"".join(m.get("body", b"") for m in sent)


def test_a_stream_that_does_not_end_is_told_why(state: drain.Drain, ask: Any) -> None:
    async def run() -> tuple[int, bytes]:
        asked = asyncio.ensure_future(ask("/v1/completions"))
        await asyncio.sleep(0.05)
        state.begin(0.1)
        return await asked

    status, body = asyncio.run(run())
    assert status == 200
    *_, last, done = body.decode().strip().split("\n\n")
    assert done == "data: [DONE]"
    assert json.loads(last.removeprefix("data: "))["error"]["message"] == drain.ENDED
    assert state.wait_until_idle(0)


def test_what_is_new_is_refused_and_the_probe_says_so(state: drain.Drain, ask: Any) -> None:
    assert asyncio.run(ask("/quick")) == (200, b"data: [DONE]\n\n")
    state.begin(10)
    for path, method in (("/v1/chat/completions", "POST"), ("/health", "GET")):
        status, body = asyncio.run(ask(path, method))
        assert status == 503
        assert json.loads(body)["error"]["message"] == drain.REFUSED
    assert asyncio.run(ask("/quick", "GET"))[0] == 200


def test_a_server_that_was_closed_says_nothing_of_the_next(state: drain.Drain) -> None:
    """A process may close one engine and serve another, whose clients are not refused."""
    state.begin(10)
    assert asyncio.run(_ask(_Engine(), "/quick", "POST")) == (200, b"data: [DONE]\n\n")


def test_the_time_for_streams_leaves_some_for_the_end() -> None:
    assert drain.grace(240) == 235
    assert drain.grace(9) == 6
    assert drain.grace(0) == 0


@pytest.mark.parametrize(
    ("flags", "middleware"),
    [
        ([], []),
        (["--kv-policy", "full"], []),
        (["--kv-policy", "sink"], [REQUEST_MIDDLEWARE, DRAIN_MIDDLEWARE]),
    ],
    ids=["none", "full", "sink"],
)
def test_only_a_server_with_a_policy_drains_by_it(
    flags: list[str], middleware: list[str], tiny_folder: Path
) -> None:
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    from vllm_sink import compat, plugin

    plugin.register()
    parser = compat.serve_arguments().make_arg_parser(FlexibleArgumentParser())
    args = parser.parse_args(["--model", str(tiny("llama-gqa", tiny_folder)), *flags])
    AsyncEngineArgs.from_cli_args(args)
    assert args.middleware == middleware
