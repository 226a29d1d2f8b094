"""Over HTTP: a request without a length ends, streams are counted, no request waits forever."""

from __future__ import annotations

import json
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from email.message import Message
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.engines import random_tokens, tiny
from tests.e2e.routes import GENERATING, MODEL, STREAMING, with_options
from tests.e2e.servers import Server, serve, until

SINKS, WINDOW, SEGMENT, NATIVE = 4, 60, 1024, 128
TIMEOUT = 4

#: Of 19 blocks 15 are for streams, and each needs 4.
STREAMS = 3
FLAGS = (
    f"--kv-policy sink --sink-tokens {SINKS} --window-tokens {WINDOW} --segment-tokens {SEGMENT} "
    f"--served-model-name {MODEL} --dtype float32 --enforce-eager --max-num-seqs 8 "
    f"--max-num-batched-tokens 256 --num-gpu-blocks-override 20 --sink-queue-timeout {TIMEOUT} "
    "--max-num-queued-reqs 12 --enable-scale-out"
)


@pytest.fixture(scope="module")
def server(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    log = tmp_path_factory.mktemp("server") / "log"
    with serve(tiny("llama-gqa", tiny_folder), log, *FLAGS.split()) as running:
        yield running


def _ask(server: Server, path: str, body: dict[str, Any]) -> tuple[int, Any, Message]:
    """Status, answer and headers."""
    request = urllib.request.Request(
        server.url + path, json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=120) as answer:
            text, status, headers = answer.read().decode(), answer.status, answer.headers
    except urllib.error.HTTPError as error:
        text, status, headers = error.read().decode(), error.code, error.headers
    try:
        return status, json.loads(text), headers
    except ValueError:
        return status, text, headers


CHAT = {"messages": [{"role": "user", "content": "Hi"}], "model": MODEL, "ignore_eos": True}
PROMPT = {"prompt": "Hi", "model": MODEL, "ignore_eos": True}
ENDLESS = {"vllm_xargs": {"endless": True}}


@contextmanager
def _streams(server: Server, count: int) -> Iterator[None]:
    """Endless streams whose windows are full; ended afterwards."""
    with ExitStack() as stack:
        for i in range(count):
            body = {**PROMPT, **ENDLESS, "prompt": random_tokens(20, seed=i)}
            events = server.stream("/v1/completions", body)
            stack.callback(events.close)
            for _ in range(2 * WINDOW):
                next(events)
        yield
    _until_idle(server)


def _until_idle(server: Server) -> None:
    names = ("vllm_sink_streams{", "vllm:num_requests_running{")
    until(lambda: all(_total(server, name) == 0 for name in names), 60)


def _total(server: Server, name: str) -> float:
    """The sum of a metric's samples."""
    with urllib.request.urlopen(server.url + "/metrics", timeout=30) as answer:
        lines = answer.read().decode().splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name))


# -- lengths --------------------------------------------------------------------------------------


def test_an_answer_without_a_length_ends_with_the_context(server: Server) -> None:
    """As in vLLM, whose completions have a default of 16."""
    for path, body, total in (
        ("/v1/chat/completions", CHAT, NATIVE),
        ("/v1/completions", {**PROMPT, "prompt": random_tokens(4)}, 20),
    ):
        status, answer, _ = _ask(server, path, body)
        assert status == 200, answer
        assert answer["usage"]["total_tokens"] == total, path
        assert answer["choices"][0]["finish_reason"] == "length"
    batch = {**CHAT, "messages": [CHAT["messages"], CHAT["messages"]]}
    status, answer, _ = _ask(server, "/v1/chat/completions/batch", batch)
    assert status == 200, answer
    assert {choice["finish_reason"] for choice in answer["choices"]} == {"length"}
    status, answer, _ = _ask(server, "/v1/responses", {"model": MODEL, "input": "Hi"})
    assert status == 200, answer
    assert answer["usage"]["total_tokens"] <= NATIVE


def test_a_prompt_that_fills_the_context_gets_an_answer(server: Server) -> None:
    body = {**CHAT, "messages": [{"role": "user", "content": "wave " * 100}]}
    status, answer, _ = _ask(server, "/v1/chat/completions", body)
    assert status == 200, answer
    assert answer["usage"]["prompt_tokens"] > NATIVE
    assert answer["usage"]["completion_tokens"] == NATIVE


def test_a_length_past_the_context_is_honoured(server: Server) -> None:
    status, answer, _ = _ask(server, "/v1/completions", {**PROMPT, "max_tokens": 1500})
    assert status == 200, answer
    assert answer["usage"]["completion_tokens"] == 1500


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
def test_endless_is_asked_for(server: Server, path: str) -> None:
    body = {**(CHAT if "chat" in path else PROMPT), **ENDLESS, "return_token_ids": True}
    events, count = server.stream(path, body), 0
    for event in events:
        count += sum(len(choice.get("token_ids") or []) for choice in event["choices"])
        assert all(choice["finish_reason"] is None for choice in event["choices"])
        if count > 2 * SEGMENT:
            break
    events.close()
    assert count > 2 * SEGMENT
    _until_idle(server)


def test_endless_with_a_length_ends_there(server: Server) -> None:
    body = {**PROMPT, "vllm_xargs": {"endless": True}, "max_tokens": 7}
    status, answer, _ = _ask(server, "/v1/completions", body)
    assert (status, answer["usage"]["completion_tokens"]) == (200, 7)


@pytest.mark.parametrize("value", ["yes", 2, 1.0, None, [True], {}])
@pytest.mark.parametrize("streamed", [False, True])
def test_endless_is_true_or_false(server: Server, value: Any, streamed: bool) -> None:
    body = {**PROMPT, "stream": streamed, "vllm_xargs": {"endless": value}, "max_tokens": 3}
    status, answer, _ = _ask(server, "/v1/completions", body)
    assert status == 400, answer
    assert "endless" in json.dumps(answer)


def test_endless_in_the_wrong_place_is_refused(server: Server) -> None:
    for body in ({**CHAT, "endless": True}, {**CHAT, "vllm_xargs": {"Endless": True}}):
        status, answer, _ = _ask(server, "/v1/chat/completions", {**body, "max_tokens": 3})
        assert status == 400, answer
        assert "endless" in answer["error"]["message"]


def test_clients_are_told_the_context(server: Server) -> None:
    with urllib.request.urlopen(server.url + "/v1/models", timeout=30) as answer:
        (card,) = json.load(answer)["data"]
    assert card["max_model_len"] == NATIVE
    for body in ({"prompt": "Hi"}, {"messages": CHAT["messages"]}):
        _, told, _ = _ask(server, "/tokenize", {"model": MODEL, **body})
        assert told["max_model_len"] == NATIVE


# -- admission ------------------------------------------------------------------------------------


def test_one_stream_too_many(server: Server) -> None:
    """On every route, streamed or not: 429 with what is free and when to come again, before any
    event; what is no stream is answered.
    """
    asked = [(path, {}) for path in GENERATING]
    asked += [(path, {"stream": True}) for path in STREAMING]
    with _streams(server, STREAMS):
        for path, more in asked:
            body = with_options(path, {"endless": True}, **more)
            lengths = body.get("sampling_params", body)
            for name in ("max_tokens", "max_output_tokens"):
                lengths |= {name: 10**6} if name in lengths else {}
            status, answer, headers = _ask(server, path, body)
            assert status == 429, (path, more, answer)
            assert f"{STREAMS} streams are live" in answer["error"]["message"]
            assert "--sink-stream-share 0.8 of 19" in answer["error"]["message"]
            assert headers["Retry-After"] == "10"
        for path in GENERATING:
            status, answer, _ = _ask(server, path, GENERATING[path])
            assert status == 200, (path, answer)
    with _streams(server, 1):
        pass


@pytest.mark.parametrize(
    ("path", "streamed"),
    [("/v1/completions", False), ("/v1/completions", True), ("/v1/responses", True)],
)
def test_nobody_waits_for_ever_and_nobody_blocks(server: Server, path: str, streamed: bool) -> None:
    """A request that does not fit beside the streams times out; a small one overtakes it."""
    large = {**PROMPT, "prompt": random_tokens(400), "max_tokens": 4, "stream": streamed}
    if path == "/v1/responses":  # it has events of its own before the engine's
        large = {"input": "a" * 400, "max_output_tokens": 16, "stream": True}
    told: list[tuple[int, Any, Message]] = []
    with _streams(server, STREAMS):
        waiting = threading.Thread(target=lambda: told.append(_ask(server, path, large)))
        begin = time.monotonic()
        waiting.start()
        until(lambda: _total(server, "vllm:num_requests_waiting{") == 1, 60)
        status, answer, _ = _ask(server, "/v1/completions", {**PROMPT, "max_tokens": 4})
        assert status == 200, answer
        assert waiting.is_alive(), "the small one passed the large one"
        waiting.join(60)
        assert TIMEOUT <= time.monotonic() - begin < TIMEOUT + 20
        ((status, answer, headers),) = told
        assert status == 503, answer
        assert "--sink-queue-timeout" in answer["error"]["message"]
        assert headers["Retry-After"] == "5"
    status, answer, _ = _ask(server, path, large)
    assert status == 200, answer


def test_several_answers_are_refused_together(server: Server) -> None:
    """If there is no room for n streams, none of them is left behind."""
    with _streams(server, STREAMS - 1):
        status, answer, _ = _ask(server, "/v1/completions", {**PROMPT, **ENDLESS, "n": 3})
        assert status == 429, answer
    _until_idle(server)


def test_a_full_queue_is_vllms_own(server: Server) -> None:
    """``--max-num-queued-reqs`` counts all that are not finished; past it, 503."""
    long = {**PROMPT, "prompt": random_tokens(400), "max_tokens": 4}
    statuses: list[int] = []
    with _streams(server, STREAMS):
        waiting = [
            threading.Thread(
                target=lambda: statuses.append(_ask(server, "/v1/completions", long)[0])
            )
            for _ in range(12)
        ]
        for thread in waiting:
            thread.start()
        for thread in waiting:
            thread.join(60)
    assert statuses == [503] * 12


def test_refusals_are_counted(server: Server) -> None:
    """By reason; no stream was preempted."""
    refused = 'vllm_sink_admissions_refused_total{engine="0",model_name="tiny",reason='
    assert _total(server, f'{refused}"streams"') >= 5
    # Two, and of twelve in the queue those that were let in.
    assert _total(server, f'{refused}"timeout"') >= 2 + 5
    assert _total(server, "vllm_sink_preemptions_total{") == 0
