"""Tenants of a real server: who may call what, and what each may have, on every route."""

from __future__ import annotations

import json
import signal
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.engines import random_tokens, tiny
from tests.e2e.routes import GENERATING, MODEL, OTHERS, PROMPT
from tests.e2e.servers import Server, run_vllm, serve, until
from vllm_sink.tenancy.authentication import OPEN, TENANTS

# One worker: the tests share what the module sets up.
pytestmark = pytest.mark.xdist_group("tenants")

FILE = """
tenants:
  - {name: press, keys: [sk-press]}
  - {name: nothing, keys: [sk-nothing], max_queued_requests: 0}
  - {name: one, keys: [sk-one], max_streams: 1, max_pinned_tokens: 30, max_queued_requests: 1}
  - {name: slow, keys: [sk-slow], tokens_per_minute: 60}
  - {name: admin, keys: [sk-admin], operator: true}
"""

ENDLESS = {"vllm_xargs": {"endless": True}}


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tenants") / "tenants.yaml"
    path.write_text(FILE)
    return path


@pytest.fixture(scope="module")
def server(tiny_folder: Path, file: Path) -> Iterator[Server]:
    flags = (
        "--kv-policy sink --window-tokens 60 --segment-tokens 256 --max-num-batched-tokens 64 "
        f"--sink-tenant-keys {file} --sink-isolate-tenants --enable-prompt-tokens-details "
        "--enable-scale-out --sink-max-streams 8 "
        f"--served-model-name {MODEL} --dtype float32 --enforce-eager --max-num-seqs 16"
    )
    with serve(tiny("llama-gqa", tiny_folder), file.with_suffix(".log"), *flags.split()) as running:
        yield running


def _ask(
    server: Server, path: str, body: Any = None, key: str | None = None, method: str = "POST"
) -> tuple[int, Any, dict[str, str]]:
    headers = {"Content-Type": "application/json"}
    headers |= {"Authorization": f"Bearer {key}"} if key else {}
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(server.url + path, data, headers, method=method)
    try:
        with urllib.request.urlopen(request, timeout=300) as answer:
            return answer.status, answer.read(), dict(answer.headers)
    except urllib.error.HTTPError as error:
        return error.code, error.read(), dict(error.headers)


def _complete(server: Server, key: str, **more: Any) -> tuple[int, dict[str, Any]]:
    return server.post("/v1/completions", {"prompt": PROMPT, "max_tokens": 2, **more}, key)


@contextmanager
def _streaming(server: Server, key: str) -> Iterator[None]:
    """Beside a stream of this tenant's."""
    body = {"prompt": PROMPT, "stream": True, "ignore_eos": True, "max_tokens": 10**6}
    request = urllib.request.Request(
        server.url + "/v1/completions",
        json.dumps(body).encode(),
        {"Content-Type": "application/json", "x-api-key": key},
    )
    with urllib.request.urlopen(request, timeout=300) as answer:
        answer.readline()
        yield


def _routes(server: Server) -> set[tuple[str, str]]:
    """Every route of the app and its methods, as the app reports them."""
    paths = json.loads(_ask(server, "/openapi.json", key="sk-admin", method="GET")[1])["paths"]
    found = {(path, method.upper()) for path, methods in paths.items() for method in methods}
    assert len(found) > 20
    return found


def test_no_route_but_the_open_ones_is_for_those_without_a_key(server: Server) -> None:
    for path, method in sorted(_routes(server)):
        for key in (None, "sk-unknown"):
            status, told, headers = _ask(
                server, path, {} if method == "POST" else None, key, method
            )
            if path in OPEN:
                assert status not in (401, 403), path
            else:
                assert status == 401, f"{method} {path}"
                assert headers["www-authenticate"] == "Bearer"
                assert b"sk-" not in told


def test_what_concerns_others_is_an_operators(server: Server) -> None:
    for path, method in sorted(_routes(server)):
        status, told, _ = _ask(server, path, {} if method == "POST" else None, "sk-press", method)
        theirs = path in TENANTS or path in OPEN or path.startswith("/v1/models")
        assert (status == 403) == (not theirs), f"{method} {path}: {status} {told!r}"
    assert set(GENERATING) <= set(TENANTS)


@pytest.mark.parametrize("path", GENERATING)
def test_a_limit_holds_on_every_route(server: Server, path: str) -> None:
    """A streamed answer has the status too."""
    for more in ({}, {"stream": True}):
        body = json.loads(json.dumps(GENERATING[path])) | ({} if path.endswith("/batch") else more)
        status, told, headers = _ask(server, path, body, "sk-nothing")
        assert status == 429, told
        assert b"allowed: 0 (--sink-tenant-max-queued-requests)" in told
        assert int(headers["retry-after"]) >= 1
    assert _ask(server, path, GENERATING[path], "sk-press")[0] == 200


def test_what_generates_nothing_consumes_nothing(server: Server) -> None:
    """A tenant of 60 tokens a minute, after thousands of tokens were counted and rendered."""
    text = "a" * 2000
    bodies: dict[str, dict[str, Any]] = {
        "/tokenize": {"prompt": text},
        "/detokenize": {"tokens": random_tokens(1000)},
        "/v1/messages/count_tokens": {
            "model": MODEL,
            "messages": [{"role": "user", "content": text}],
        },
        "/v1/completions/render": {"prompt": text, "max_tokens": 1},
        "/v1/chat/completions/render": {"messages": [{"role": "user", "content": text}]},
    }
    assert set(bodies) <= set(OTHERS)
    for path, body in bodies.items():
        for _ in range(3):
            status, told, _ = _ask(server, path, {"model": MODEL, **body}, "sk-slow")
            assert status == 200, (path, told)
    assert _complete(server, "sk-slow")[0] == 200
    # This is what they would have met.
    status, told = _complete(server, "sk-slow")
    assert status == 429
    assert "60 tokens a minute" in told["error"]["message"]


def test_a_thousand_refused_requests_leave_nothing(server: Server) -> None:
    """Refused by a limit, by a check, or by vLLM: the free place stays free."""
    bad: list[dict[str, Any]] = [
        {"vllm_xargs": {"sink_tokens": 29}},  # too many pinned tokens, with n
        {"vllm_xargs": {"sink_tokens": -1}},
        {"vllm_xargs": {"window_tokens": 1000}},
        {"logit_bias": {"999999": 1}},
        {"n": 2},
        {"n": 3, **ENDLESS},
        {"vllm_xargs": {"sink_tokens": 28}},  # beside what is pinned already
    ]
    bad[0]["n"] = 2
    seen = set()

    def refused(part: int) -> None:
        for i in range(part, 1000, 4):
            seen.add(_complete(server, "sk-one", **bad[i % len(bad)])[0])

    threads = [threading.Thread(target=refused, args=(part,)) for part in range(4)]
    with _streaming(server, "sk-one"):
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert seen == {400, 429}
    until(lambda: _complete(server, "sk-one", **ENDLESS)[0] == 200, 30)
    status, told = _complete(server, "sk-one", vllm_xargs={"endless": True, "sink_tokens": 30})
    assert status == 200, told


def test_a_stream_is_counted_while_it_lives_and_no_longer(server: Server) -> None:
    with _streaming(server, "sk-one"):
        status, told = _complete(server, "sk-one", **ENDLESS)
        assert status == 429
        assert "tenant 'one' has 1 live streams and asks for 1 more" in told["error"]["message"]
        # It is not another's business, nor that of requests that end.
        assert _complete(server, "sk-press", **ENDLESS)[0] == 200
        assert _complete(server, "sk-one")[0] == 200
    until(lambda: _complete(server, "sk-one", **ENDLESS)[0] == 200, 30)


def test_cached_prefixes_are_a_tenants_own(server: Server) -> None:
    """Whatever salt a client names."""
    prompt = random_tokens(100, seed=77)

    def cached(key: str, **more: Any) -> int:
        status, told = _complete(server, key, prompt=prompt, **more)
        assert status == 200, told
        details = told["usage"]["prompt_tokens_details"]
        return 0 if details is None else int(details["cached_tokens"])

    assert cached("sk-press") == 0
    assert cached("sk-press") > 0
    assert cached("sk-admin") == 0
    assert cached("sk-admin", cache_salt="press") == 0
    assert cached("sk-press", cache_salt="x") == 0
    assert cached("sk-press", cache_salt="x") > 0


def test_metrics_are_open_and_name_nobody(server: Server) -> None:
    assert _complete(server, "sk-press")[0] == 200
    with urllib.request.urlopen(server.url + "/metrics", timeout=30) as answer:
        text = answer.read().decode()
    assert "vllm_sink_tenant_streams{" in text
    for name in ("press", "nothing", "admin"):
        assert f'tenant="{name}"' not in text


def test_the_file_is_read_again(server: Server, file: Path) -> None:
    """On a change, and on SIGHUP; an invalid file locks no tenant out."""
    assert _complete(server, "sk-new")[0] == 401
    file.write_text(FILE + "  - {name: new, keys: [sk-new]}\n")
    until(lambda: _complete(server, "sk-new")[0] == 200, 10)
    file.write_text("tenants: [")
    until(lambda: "Tenants stay as they were" in _poke(server), 10)
    assert _complete(server, "sk-new")[0] == 200
    file.write_text(FILE)
    assert server.process is not None
    server.process.send_signal(signal.SIGHUP)
    until(lambda: _complete(server, "sk-new")[0] == 401, 10)
    assert _complete(server, "sk-press")[0] == 200


def _poke(server: Server) -> str:
    _complete(server, "sk-press")
    return server.log.read_text()


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        ("--sink-tenant-keys /no/file", "--sink-tenant-keys: '/no/file' is not allowed"),
        ("--sink-tenant-keys FILE --api-key k", "--api-key (VLLM_API_KEY) with --sink-tenant-keys"),
        ("--sink-tenant-keys FILE --api-server-count 2", "--api-server-count: 2 is not allowed"),
        ("--sink-tenant-keys FILE --sink-tenant-label user", "--sink-tenant-label: 'user' is not"),
        ("--sink-tenant-label key", "key only with --sink-tenant-keys"),
        ("--sink-isolate-tenants", "--sink-isolate-tenants: True is not allowed"),
        ("--sink-tenant-tokens-per-minute 5", "--sink-tenant-tokens-per-minute: 5 is not allowed"),
        ("--sink-tenant-names full", "'full' is not allowed; allowed: one of hashed, plain"),
    ],
)
def test_bad_flags(tiny_folder: Path, file: Path, flags: str, told: str) -> None:
    folder = tiny("llama-gqa", tiny_folder)
    given = flags.replace("FILE", str(file)).split()
    done = run_vllm("serve", str(folder), "--kv-policy", "sink", *given)
    assert done.returncode != 0
    assert told in done.stderr
    assert "Traceback" not in done.stderr
