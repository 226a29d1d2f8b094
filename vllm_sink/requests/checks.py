"""The check of a request: what it asks for can be honoured, and the engine core can read it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vllm.exceptions import VLLMValidationError
from vllm.sampling_params import SamplingParams
from vllm.utils import length_from_prompt_token_ids_or_embeds
from vllm.v1.engine import EngineCoreRequest

from vllm_sink.client_request import CLIENT_REQUEST, ClientRequest
from vllm_sink.config.admission import AdmissionConfig
from vllm_sink.config.kv_policy import KVPolicy
from vllm_sink.errors import PolicyError
from vllm_sink.requests.core_request import SinkRequest, seal
from vllm_sink.requests.field_bounds import bound_numbers, require_sendable
from vllm_sink.requests.length_limits import (
    check_segment,
    default_max_tokens,
    is_stream,
    settle_length,
)
from vllm_sink.requests.options import ENDLESS, refuse_unknown, stream_policy_of, take_option
from vllm_sink.requests.sink_and_window import settle_sinks, settle_window
from vllm_sink.tenancy import limits
from vllm_sink.tenancy.identity import cache_salt


def check(
    request: EngineCoreRequest,
    kv_policy: KVPolicy,
    vllm_config: Any,
    system_tokens: int | None,
    served: bool = False,
) -> EngineCoreRequest:
    """The request with its parameters settled, so that the engine core can read and honour it.

    Args:
        request: as vLLM made it; its parameters are this request's own.
        kv_policy: of the engine.
        vllm_config: of the engine's front end.
        system_tokens: length of the prompt's leading system message, if known.
        served: whether a client waits for it, which can be refused and try again.

    Raises:
        VLLMValidationError: HTTP 400, naming the field, the value and what is allowed.
    """
    params = request.sampling_params
    if params is None:
        return request
    client = CLIENT_REQUEST.get(None)
    try:
        bound_numbers(params, vllm_config.model_config.get_vocab_size())
        prompt_tokens = length_from_prompt_token_ids_or_embeds(
            request.prompt_token_ids, request.prompt_embeds
        )
        block_size = vllm_config.cache_config.block_size
        longest = vllm_config.model_config.max_model_len
        endless = _settle_endless(params, client)
        default = None
        if endless and client is not None and not client.names_length:
            params.max_tokens = None  # completions would end after 16
        if not endless and not _names_length(params, client, longest - prompt_tokens):
            configured = AdmissionConfig.from_config(vllm_config.additional_config)
            default = default_max_tokens(
                configured.default_max_tokens, kv_policy.native, prompt_tokens
            )
        total = settle_length(params, prompt_tokens, longest, default)
        _refuse_unknown_options(params, client)
        window = settle_window(request, params, client, kv_policy)
        check_segment(request, kv_policy, window, prompt_tokens, total, block_size)
        settle_sinks(request, params, client, kv_policy, window, vllm_config, system_tokens)
        sealed = seal(request)
        sealed.stream = is_stream(endless, params, total, kv_policy, block_size)
        sealed.served = served
        _settle_tenant(sealed)
        require_sendable(sealed)
    except PolicyError as error:
        raise VLLMValidationError(str(error), parameter=error.field) from None
    _reserve(sealed, params, kv_policy, prompt_tokens)
    return sealed


def _settle_tenant(request: SinkRequest) -> None:
    """Write the tenant into the request, and salt its cache if tenants are isolated."""
    entry = limits.ENTRY.get(None)
    if entry is None or not entry.config.on:
        return
    request.tenant = entry.tenant.name
    if entry.config.isolate:
        request.cache_salt = cache_salt(entry.tenant.name, request.cache_salt)


def _reserve(
    request: SinkRequest, params: SamplingParams, kv_policy: KVPolicy, prompt_tokens: int
) -> None:
    """Reserve all answers of a request within the tenant's limits.

    Raises:
        GracefulHTTPError: 429.
    """
    entry = limits.ENTRY.get(None)
    if entry is None:
        return
    sinks = stream_policy_of(params, kv_policy.default).sink_tokens
    entry.reserve(params.n, limits.Demand(int(request.stream), sinks, 1), prompt_tokens)


def _settle_endless(params: SamplingParams, client: ClientRequest | None) -> bool:
    """Whether the request asks for an endless answer; removes the option from its parameters.

    Raises:
        PolicyError: it is neither true nor false.
    """
    value = take_option(params, client, ENDLESS, False)
    if not isinstance(value, bool):
        raise PolicyError(ENDLESS, value, "true or false")
    if value and client is not None and client.fields.get("use_beam_search") is True:
        raise PolicyError(ENDLESS, value, "false with use_beam_search: beams end at the context")
    return value


def _names_length(params: SamplingParams, client: ClientRequest | None, filled_in: int) -> bool:
    """Whether the client or the model sets a maximum length of the answer.

    vLLM's routes fill in what is left of ``max_model_len``, or the model's own default where its
    ``generation_config`` has one.

    Args:
        params: as vLLM made them.
        client: the HTTP request, if there is one.
        filled_in: what is left of ``max_model_len``.
    """
    if params.max_tokens is None:
        return False
    if client is not None and client.names_length:
        return True
    return params.max_tokens != filled_in


def _refuse_unknown_options(params: SamplingParams, client: ClientRequest | None) -> None:
    extra = params.extra_args or {}
    written: Mapping[str, Any] = {} if client is None else client.options
    refuse_unknown([*written, *extra], {} if client is None else client.fields)
