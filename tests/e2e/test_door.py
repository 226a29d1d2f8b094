"""No request hurts another: requests are checked in one place, whatever the route.

The routes are those of the app itself, so one that a new vLLM adds is covered.
"""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.engines import random_tokens, tiny
from tests.e2e.routes import (
    CHAT,
    CHATS,
    GENERATING,
    MODEL,
    OTHERS,
    PROMPT,
    STREAMING,
    SYSTEM_TOKENS,
    with_options,
)
from tests.e2e.servers import Server, serve, until
from vllm_sink.tenancy.labels import hashed

# One worker: the tests share what the module sets up.
pytestmark = pytest.mark.xdist_group("door")


@pytest.fixture(scope="module")
def server(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The server under test: segments roll soon, tenants are labelled, token ids are accepted."""
    log = tmp_path_factory.mktemp("door") / "log"
    flags = (
        "--kv-policy sink --sink-tokens system --window-tokens 60 --segment-tokens 256 "
        "--max-num-batched-tokens 64 --sink-tenant-label user --enable-scale-out "
        f"--served-model-name {MODEL} --dtype float32 --enforce-eager --max-num-seqs 16"
    )
    with serve(tiny("llama-gqa", tiny_folder), log, *flags.split()) as running:
        yield running


@pytest.fixture(autouse=True)
def alive(server: Server) -> Iterator[None]:
    """After each of these, the server answers."""
    yield
    assert server.post("/v1/completions", {"prompt": "a", "max_tokens": 1})[0] == 200


def _post(server: Server, path: str, body: dict[str, Any]) -> tuple[int, str, dict[str, str]]:
    """Status, body and headers, of whatever kind."""
    request = urllib.request.Request(
        server.url + path, json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=300) as answer:
            return answer.status, answer.read().decode(), dict(answer.headers)
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode(), dict(error.headers)


def test_every_route_is_known_here(server: Server) -> None:
    """A route that a new vLLM adds fails this until it is in one of the two tables."""
    with urllib.request.urlopen(server.url + "/openapi.json", timeout=60) as answer:
        paths = json.load(answer)["paths"]
    posts = {path for path, methods in paths.items() if "post" in methods}
    assert posts <= {*GENERATING, *OTHERS}


BAD_OPTIONS = [
    ({"sink_tokens": 99999}, "sink_tokens: 99999 is not allowed; allowed: 0 to"),
    ({"sink_tokens": -1}, "sink_tokens: -1 is not allowed"),
    ({"sink_tokens": True}, "sink_tokens: True is not allowed; allowed: an integer"),
    ({"sink_tokens": 2.5}, "sink_tokens: 2.5 is not allowed"),
    ({"sink_tokens": "sistem"}, "sink_tokens: 'sistem' is not allowed"),
    ({"sink_tokens": 1 << 62}, f"sink_tokens: {1 << 62} is not allowed"),
    ({"sink_token": 4}, "'sink_token' is not allowed; allowed: 'sink_tokens'"),
    ({"Sink_Tokens": 4}, "'Sink_Tokens' is not allowed; allowed: 'sink_tokens'"),
    ({"num_sink_tokens": 4}, "'num_sink_tokens' is not allowed"),
    ({"attention_sink_size": 4}, "'attention_sink_size' is not allowed"),
    ({"sink_tenant": "victim"}, "'sink_tenant' is not allowed"),
    ({"sink_tenant": 5}, "'sink_tenant' is not allowed"),
    ({"window_tokens": 61}, "window_tokens: 61 is not allowed; allowed: 1 to 60"),
    ({"window_tokens": 0}, "window_tokens: 0 is not allowed"),
    ({"window_tokens": True}, "window_tokens: True is not allowed"),
    ({"window_tokens": "30"}, "window_tokens: '30' is not allowed"),
    ({"window_token": 30}, "'window_token' is not allowed; allowed: 'sink_tokens' or 'window_t"),
    ({"endles": True}, "'endles' is not allowed"),
    ({"end_less": True}, "'end_less' is not allowed"),
    ({"endless": 1}, "endless: 1 is not allowed; allowed: true or false"),
    ({"sink_ticket": "x"}, "'sink_ticket' is not allowed"),
]


@pytest.mark.parametrize("path", GENERATING)
@pytest.mark.parametrize(("options", "told"), BAD_OPTIONS, ids=lambda value: str(value)[:30])
def test_a_bad_option_is_refused_on_every_route(
    server: Server, path: str, options: dict[str, Any], told: str
) -> None:
    status, body, _ = _post(server, path, with_options(path, options))
    assert status == 400, body
    assert told in json.loads(body)["error"]["message"]


@pytest.mark.parametrize("path", STREAMING)
def test_a_streamed_request_is_refused_before_its_headers(server: Server, path: str) -> None:
    status, body, headers = _post(
        server, path, with_options(path, {"sink_tokens": 99999}, stream=True)
    )
    assert status == 400
    assert headers["content-type"] == "application/json"
    # As the same route answers to the same error unstreamed.
    plain = _post(server, path, with_options(path, {"sink_tokens": 99999}))
    assert json.loads(body) == json.loads(plain[1])


def test_vllms_own_refusal_has_its_status_too(server: Server) -> None:
    """vLLM notices late, in ``process_inputs``, and reports it in the body of a 200."""
    body = {"prompt": PROMPT, "max_tokens": 3, "stream": True, "logit_bias": {"999999": 1}}
    status, told, _ = _post(server, "/v1/completions", body)
    assert status == 400
    assert "logit_bias" in json.loads(told)["error"]["message"]


def test_one_of_several_prompts_is_refused_before_the_headers(server: Server) -> None:
    body = {"prompt": [PROMPT, PROMPT[:3]], "max_tokens": 3, "stream": True}
    status, told, _ = _post(server, "/v1/completions", body | {"vllm_xargs": {"sink_tokens": 20}})
    assert status == 400, told
    assert "0 to 3, the length of the prompt" in told


@pytest.mark.parametrize("path", STREAMING)
def test_a_streamed_request_that_is_let_in_streams(server: Server, path: str) -> None:
    status, body, headers = _post(server, path, with_options(path, {"sink_tokens": 5}, stream=True))
    assert status == 200
    assert headers["content-type"].startswith("text/event-stream")
    events = [line for line in body.splitlines() if line.startswith("data: ")]
    assert len(events) >= 3


def test_options_in_the_wrong_place_are_told(server: Server) -> None:
    for name in ("sink_tokens", "Sink_Tokens"):
        body = {"messages": CHAT, "max_tokens": 3, name: 4}
        status, told, _ = _post(server, "/v1/chat/completions", body)
        assert status == 400
        assert f"{name}: 'a field of the request' is not allowed" in told


def _said(server: Server, path: str, options: dict[str, Any], **more: Any) -> list[list[int]]:
    """The tokens of a long greedy answer, far past the window."""
    long = {"max_output_tokens": 200} if path == "/v1/responses" else {"max_tokens": 200}
    body = with_options(path, options, **long, **more) | {"temperature": 0, "ignore_eos": True}
    if path != "/v1/messages":
        body["return_token_ids"] = True
    status, told, _ = _post(server, path, body)
    assert status == 200, told
    answer = json.loads(told)
    if path == "/v1/responses":
        return [answer["output"][0]["content"][0]["text"]]
    if path == "/v1/messages":
        return [answer["content"][0]["text"]]
    return [choice["token_ids"] for choice in answer["choices"]]


@pytest.mark.parametrize("path", CHATS)
def test_system_pins_on_every_route_of_chats(server: Server, path: str) -> None:
    """``"system"`` gives what the rendered system message's length gives, and no other number."""
    asked = _said(server, path, {"sink_tokens": "system"})
    assert asked == _said(server, path, {"sink_tokens": SYSTEM_TOKENS})
    assert asked != _said(server, path, {"sink_tokens": SYSTEM_TOKENS - 2})


@pytest.mark.parametrize("path", CHATS)
def test_the_server_pins_it_where_a_chat_asks_for_nothing(server: Server, path: str) -> None:
    """``--sink-tokens system``; without a system message, the usual four."""
    assert _said(server, path, {}) == _said(server, path, {"sink_tokens": SYSTEM_TOKENS})
    assert _said(server, path, {}) != _said(server, path, {"sink_tokens": 4})


def test_without_a_system_message_the_usual_four_are_pinned(server: Server) -> None:
    for path, more in (
        ("/v1/completions", {}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "Tell me. " * 9}]}),
    ):
        default = _said(server, path, {}, **more)
        assert default == _said(server, path, {"sink_tokens": 4}, **more)
        assert default != _said(server, path, {"sink_tokens": 1}, **more)


def test_beams_have_the_sinks_that_were_asked_for(server: Server) -> None:
    """Beam search drops ``vllm_xargs``: its steps find them with the caller."""
    prompt = random_tokens(120, seed=3)

    def say(**more: Any) -> Any:
        body = {"prompt": prompt, "use_beam_search": True, "n": 2, "max_tokens": 6, **more}
        status, answer = server.post("/v1/completions", body | {"return_token_ids": True})
        assert status == 200, answer
        return [choice["text"] for choice in answer["choices"]]

    pinned = say(vllm_xargs={"sink_tokens": 60})
    assert say(vllm_xargs={"sink_tokens": 4}) == say()
    assert pinned != say()
    for options, told in BAD_OPTIONS:
        body = {"prompt": PROMPT, "use_beam_search": True, "n": 2, "max_tokens": 2}
        status, answer = server.post("/v1/completions", body | {"vllm_xargs": options})
        assert (status, told in str(answer)) == (400, True)


def test_beams_end_at_the_models_context(server: Server) -> None:
    body = {"messages": CHAT, "use_beam_search": True, "n": 2, "ignore_eos": True}
    status, answer = server.post("/v1/chat/completions", body)
    assert status == 200
    assert answer["usage"]["total_tokens"] <= 128 * 2
    status, answer = server.post("/v1/chat/completions", body | {"max_tokens": 4000})
    assert status == 400
    assert "max_tokens: 4000 is not allowed with use_beam_search" in answer["error"]["message"]


def test_a_system_message_pinned_by_beams(server: Server) -> None:
    body = {"messages": CHAT, "use_beam_search": True, "n": 2, "max_tokens": 80, "temperature": 0}

    def say(sinks: object) -> list[str]:
        status, answer = server.post(
            "/v1/chat/completions", body | {"vllm_xargs": {"sink_tokens": sinks}}
        )
        assert status == 200, answer
        return [choice["message"]["content"] for choice in answer["choices"]]

    assert say("system") == say(SYSTEM_TOKENS)


def test_a_stream_rolls_after_allowed_token_ids(server: Server) -> None:
    """The V1 runner's mask of allowed tokens is made in inference mode, and edited at a roll."""
    body = {"prompt": PROMPT, "max_tokens": 1, "allowed_token_ids": [30]}
    assert server.post("/v1/completions", body)[0] == 200
    body = {"prompt": PROMPT, "max_tokens": 700, "ignore_eos": True, "temperature": 0}
    status, answer = server.post("/v1/completions", body)
    assert (status, answer["usage"]["completion_tokens"]) == (200, 700)


INTEGERS = [-(1 << 63), -(1 << 31) - 1, -1, 0, (1 << 31) - 1, 1 << 31, 1 << 53, (1 << 63) - 1]
FLOATS = [float("nan"), float("inf"), -1.0, 1e300]


def _numeric_fields() -> dict[str, list[Any]]:
    """Every number of vLLM's sampling parameters, by its annotation."""
    from vllm import SamplingParams

    fields: dict[str, list[Any]] = {}
    for name in SamplingParams.__struct_fields__:
        kind = str(SamplingParams.__annotations__[name])
        if name.startswith("_") or "list" in kind or "dict" in kind:
            continue
        if "float" in kind:
            fields[name] = [*INTEGERS, *FLOATS]
        elif "int" in kind:
            fields[name] = INTEGERS
    return fields


FIELDS = _numeric_fields()


@pytest.mark.parametrize("field", FIELDS)
def test_every_number_of_the_sampling_parameters(server: Server, field: str) -> None:
    """As tokens in, tokens out, where vLLM takes its parameters as they are."""
    assert len(FIELDS) > 15
    for value in FIELDS[field]:
        if field == "max_tokens" and isinstance(value, int) and value > 10_000:
            continue  # an endless answer, and meant; with min_tokens it is below
        params = {"max_tokens": 2, "temperature": 1.0} | {field: value}
        body = {"token_ids": PROMPT, "sampling_params": params}
        status, told, _ = _post(server, "/inference/v1/generate", body)
        assert status in (200, 400), (value, told)


def test_min_tokens_beyond_what_a_step_counts(server: Server) -> None:
    """Both bounds are past 32 bits: the answer begins, and its client may disconnect."""
    body = {"prompt": PROMPT, "min_tokens": 3_000_000_000, "max_tokens": 4_000_000_000}
    events = server.stream("/v1/completions", body)
    for _ in range(20):
        assert next(events)["choices"]
    events.close()  # type: ignore[attr-defined]


def test_seeds_of_several_answers_stay_in_range(server: Server) -> None:
    body = {"prompt": PROMPT, "max_tokens": 2, "n": 3, "seed": (1 << 63) - 1}
    status, answer = server.post("/v1/completions", body)
    assert status == 400
    assert "seed: 9223372036854775807 is not allowed" in answer["error"]["message"]
    assert server.post("/v1/completions", body | {"seed": (1 << 63) - 3})[0] == 200


JSON_VALUES: list[Any] = [None, True, 0, -1, 1 << 63, 1.5, "", "x", [], [1], ["a"], {}, {"a": 1}]


@pytest.mark.parametrize("path", ["/v1/completions", "/inference/v1/generate"])
@pytest.mark.parametrize("name", ["sink_tokens", "sink_tenant", "session_id", "other"])
def test_every_json_type_under_every_name(server: Server, path: str, name: str) -> None:
    for value in JSON_VALUES:
        status, told, _ = _post(server, path, with_options(path, {name: value}))
        assert status in (200, 400), (value, told)


@pytest.mark.parametrize("path", GENERATING)
def test_a_tenant_that_is_no_text_is_refused(server: Server, path: str) -> None:
    """Its request would be registered, and then not cross to the engine core."""
    for name in ("\ud800", "a\x00b", "a\nb"):
        status, told, _ = _post(server, path, with_options(path, {}, user=name))
        assert status == 400, (name, told)
    assert _post(server, path, with_options(path, {}, user="Zoë 😀"))[0] == 200


def _tenants(server: Server) -> set[str]:
    with urllib.request.urlopen(server.url + "/metrics", timeout=60) as answer:
        lines = answer.read().decode().splitlines()
    told = [line for line in lines if line.startswith("vllm_sink_tenant_streams{")]
    return {line.partition('tenant="')[2].partition('"')[0] for line in told}


def test_a_tenant_is_who_the_server_says(server: Server) -> None:
    """On every route only the request's own ``user`` counts."""
    for i, path in enumerate(GENERATING):
        assert _post(server, path, with_options(path, {}, user=f"route {i}"))[0] == 200
    body = with_options("/v1/messages", {}, metadata={"user_id": "anthropic's"})
    assert _post(server, "/v1/messages", body)[0] == 200
    names = {f"route {i}" for i in range(len(GENERATING))} | {"anthropic's"}
    until(lambda: set(map(hashed, names)) <= _tenants(server), 30)
    # Names are not shown unless that is asked for.
    assert not {"victim", hashed("victim"), *names} & _tenants(server)
