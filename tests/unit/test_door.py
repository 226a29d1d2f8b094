"""What the request checks read, and what they refuse before the engine sees it."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
import torch
from vllm import SamplingParams
from vllm.v1.engine import EngineCoreRequest
from vllm.v1.serial_utils import MsgpackDecoder, MsgpackEncoder

from vllm_sink.attention.backend import store
from vllm_sink.client_request import ClientRequest
from vllm_sink.config.kv_policy import KVPolicy
from vllm_sink.errors import PolicyError
from vllm_sink.requests.core_request import SinkRequest, seal
from vllm_sink.requests.field_bounds import require_sendable
from vllm_sink.requests.options import refuse_unknown


def _caller(body: bytes | dict[str, Any], *headers: tuple[bytes, bytes]) -> ClientRequest:
    caller = ClientRequest(headers)
    written = body if isinstance(body, bytes) else json.dumps(body).encode()
    for i in range(0, len(written), 7):  # as a body may come, in pieces
        caller.receive(written[i : i + 7])
    return caller


@pytest.mark.parametrize(
    ("body", "options"),
    [
        ({"vllm_xargs": {"sink_tokens": True}}, {"sink_tokens": True}),
        ({"sampling_params": {"extra_args": {"a": 1}}}, {"a": 1}),
        ({"vllm_xargs": '{"sink_tokens": 4}'}, {"sink_tokens": 4}),  # a form's field
        ({"vllm_xargs": [1], "sampling_params": 5}, {}),
        (b'{"vllm_xargs": {"sink_tokens": 4}, "temperature": NaN}', {"sink_tokens": 4}),
        ('{"vllm_xargs": {"a": 1}}'.encode("utf-16"), {"a": 1}),
        (b'{"vllm\\u005fxargs": {"a": 1}}', {"a": 1}),
        (b'{"vllm_xargs": {"a": 1}, "vllm_xargs": {"a": 2}}', {"a": 2}),  # as Python reads it
        (b"[1]", {}),
        (b"{", {}),
        (b"", {}),
        (b"\xff", {}),
    ],
)
def test_options_are_read_as_they_were_written(body: Any, options: dict[str, Any]) -> None:
    assert _caller(body).options == options


def test_whose_a_request_is() -> None:
    assert _caller({"user": "me"}).user == "me"
    assert _caller({"user": 5}).user is None
    assert _caller({"metadata": {"user_id": "me"}}).user == "me"
    assert _caller(b'{"user": "me", "top_p": NaN}').user == "me"
    caller = _caller({}, (b"x-tenant", b"a"))
    assert caller.header("x-tenant") == "a"
    assert caller.header("x-other") is None


def test_a_header_that_is_there_twice_is_nobodys() -> None:
    """Either choice would overrule some gateway that appends its own to a client's."""
    caller = _caller({}, (b"x-tenant", b"forged"), (b"x-tenant", b"true"))
    with pytest.raises(PolicyError, match="2 headers"):
        caller.header("x-tenant")


@pytest.mark.parametrize(
    "name", ["Sink_Tokens", "sinkTokens", "attention_sink_size", "sink_tenant"]
)
def test_a_name_that_is_nearly_ours_is_refused(name: str) -> None:
    with pytest.raises(PolicyError, match="'sink_tokens'"):
        refuse_unknown([name], {})
    with pytest.raises(PolicyError, match='"vllm_xargs"'):
        refuse_unknown((), {name: 4})
    refuse_unknown(["sink_tokens", "session_id", "other", "window_size"], {"messages": []})


@pytest.mark.parametrize(
    "fields",
    [
        {"extra_body": {"vllm_xargs": {"sink_tokens": 1}}},
        {"extra_args": {"sink_tokens": 1}},
        {"sampling_params": {"endless": True}},
        {"chat_template_kwargs": {"window_tokens": 3}},
        {"vllm_xarg": {}},
    ],
)
def test_a_right_name_in_the_wrong_place_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(PolicyError, match="vllm_xargs"):
        refuse_unknown((), fields)


def test_no_field_of_vllms_is_taken_for_a_slip_of_the_pen() -> None:
    from vllm.entrypoints.anthropic.protocol import AnthropicMessagesRequest
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
    from vllm.entrypoints.openai.completion.protocol import CompletionRequest
    from vllm.entrypoints.openai.responses.protocol import ResponsesRequest

    requests = (
        AnthropicMessagesRequest,
        ChatCompletionRequest,
        CompletionRequest,
        ResponsesRequest,
    )
    names = {*SamplingParams.__struct_fields__}  # type: ignore[attr-defined]
    names.update(*(request.model_fields for request in requests))
    assert len(names) > 80
    refuse_unknown((), dict.fromkeys(names))
    refuse_unknown(names, {})


def _request(**settings: Any) -> EngineCoreRequest:
    fields: dict[str, Any] = {
        "request_id": "a",
        "prompt_token_ids": [1, 2],
        "mm_features": None,
        "sampling_params": SamplingParams(),
        "pooling_params": None,
        "arrival_time": 1.0,
        "lora_request": None,
        "cache_salt": None,
        "data_parallel_rank": None,
    }
    return EngineCoreRequest(**{**fields, **settings})


def test_the_servers_fields_cross_to_the_engine_core_and_no_clients_do() -> None:
    sealed = seal(_request(sampling_params=SamplingParams(extra_args={"tenant": "forged"})))
    read = MsgpackDecoder(SinkRequest).decode(MsgpackEncoder().encode(sealed))
    assert read.tenant is None
    sealed.tenant = "me"
    read = MsgpackDecoder(SinkRequest).decode(MsgpackEncoder().encode(sealed))
    assert read.tenant == "me"
    assert seal(sealed) is sealed
    plain = EngineCoreRequest.__struct_fields__
    assert [getattr(read, f) for f in plain if f not in ("sampling_params",)] == [
        getattr(sealed, f) for f in plain if f not in ("sampling_params",)
    ]


def test_a_tenant_of_another_type_is_not_read() -> None:
    sealed = seal(_request())
    sealed.tenant = 5  # type: ignore[assignment]
    with pytest.raises(msgspec.ValidationError):
        MsgpackDecoder(SinkRequest).decode(MsgpackEncoder().encode(sealed))


@pytest.mark.parametrize(
    "settings",
    [
        {"priority": 1 << 70},
        {"cache_salt": "\ud800"},
        {"reasoning_parser_kwargs": {"chat_template_kwargs": {"a": 1 << 70}}},
        {"session_id": 5},
        {"sampling_params": SamplingParams(extra_args={"a": "\udfff"})},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_what_cannot_cross_is_refused_before_it_is_registered(settings: dict[str, Any]) -> None:
    with pytest.raises(PolicyError, match="can be sent to the engine"):
        require_sendable(seal(_request(**settings)))
    require_sendable(seal(_request()))


def test_system_as_the_servers_default() -> None:
    chosen = KVPolicy.from_config({"name": "sink", "sink_tokens": "system"})
    assert (chosen.sink_tokens, chosen.pins_system) == (4, True)
    assert KVPolicy.from_config(chosen.to_config()) == chosen
    with pytest.raises(PolicyError, match="--kv-policy window"):
        KVPolicy.from_config({"name": "window", "sink_tokens": "system"})


def test_padding_is_not_stored() -> None:
    """Slot -1 as an index is the pool's last slot, which may be a stream's."""
    cache = torch.zeros(8, 2, 6)
    key, value = torch.ones(5, 2, 3), torch.full((5, 2, 3), 2.0)
    store(key, value, cache, torch.tensor([1, -1, 3, -1]))
    assert cache[[1, 3]].sum() == 2 * 2 * (3 + 6)
    assert cache.sum() == cache[[1, 3]].sum()
