"""The door: where every request enters the engine, and is checked before anything is allocated.

Requests come by many routes (chats, batches, beams, tokens, tool turns of Responses, Python), and
all of them end in ``AsyncLLM.add_request`` or ``LLMEngine.add_request``, which make an engine's
request of them in ``InputProcessor.process_inputs`` (vLLM: ``v1/engine/``)::

    route -> add_request ── whose it is                  401
                ├─ process_inputs ── check              400, then the tenant's limits: 429
                └─ OutputProcessor.add_request ── it is counted

What a client may set is read here and nowhere else; what the engine core reads was settled here.
"""

from __future__ import annotations

import math
import threading
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from contextvars import ContextVar
from typing import Any

import msgspec
from vllm.exceptions import VLLMValidationError
from vllm.sampling_params import SamplingParams
from vllm.utils import length_from_prompt_token_ids_or_embeds
from vllm.v1.engine import EngineCoreRequest
from vllm.v1.serial_utils import MsgpackDecoder, MsgpackEncoder

from vllm_sink import policy
from vllm_sink.attention import providers
from vllm_sink.config.admission import AdmissionConfig
from vllm_sink.config.kv_policy import KVPolicy, policy_of
from vllm_sink.config.sections import require_int
from vllm_sink.config.tenancy import TenancyConfig
from vllm_sink.errors import PolicyError
from vllm_sink.requests.client_request import CALLER, Caller
from vllm_sink.requests.core_request import SinkRequest, seal
from vllm_sink.requests.length_limits import (
    check_segment,
    default_max_tokens,
    is_stream,
    most_sinks,
    settle_length,
)
from vllm_sink.requests.options import (
    ENDLESS,
    SINK_TOKENS,
    SYSTEM,
    WINDOW_TOKENS,
    refuse_unknown,
    stream_policy_of,
)
from vllm_sink.tenancy import limits
from vllm_sink.tenancy.identity import cache_salt, tenant_of

#: The key of a rendered prompt that says how long its system message is; the renderer's own.
SYSTEM_TOKENS = "sink_system_tokens"

#: Whether this task answers a client of a server's: ``AsyncLLM`` does.
_SERVED: ContextVar[bool] = ContextVar("vllm_sink_served", default=False)

#: What buffers of the engine core hold: vLLM bounds most numbers by ``max_model_len`` in front,
#: and a stream has none there.
INT32_MAX = (1 << 31) - 1
INT64_MAX = (1 << 63) - 1


# -- the engine's front, wrapped ------------------------------------------------------------------


def checked(process_inputs: Callable[..., Any]) -> Callable[..., Any]:
    """``InputProcessor.process_inputs`` that checks and settles what was asked for."""

    def process(self: Any, request_id: str, prompt: Any, *args: Any, **kwargs: Any) -> Any:
        request = process_inputs(self, request_id, prompt, *args, **kwargs)
        kv_policy = policy_of(self.vllm_config)
        if kv_policy is None:
            return request
        return check(request, kv_policy, self.vllm_config, _system_tokens(prompt), _SERVED.get())

    return process


def _system_tokens(prompt: Any) -> int | None:
    return prompt.get(SYSTEM_TOKENS) if isinstance(prompt, Mapping) else None


def entered(add_request: Callable[..., Any]) -> Callable[..., Any]:
    """``AsyncLLM.add_request`` that lets in what may come in, and tells the caller's middleware."""

    async def add(self: Any, request_id: str, prompt: Any, params: Any, *a: Any, **kw: Any) -> Any:
        kv_policy = policy_of(self.vllm_config)
        if kv_policy is None:
            return await add_request(self, request_id, prompt, params, *a, **kw)
        caller = CALLER.get(None)
        try:
            refuse_pieces(prompt)
            token = _SERVED.set(True)
            try:
                with _entry(self, caller):
                    if isinstance(prompt, EngineCoreRequest):  # made by hand, past process_inputs
                        prompt = check(prompt, kv_policy, self.vllm_config, None, served=True)
                    added = await add_request(self, request_id, prompt, params, *a, **kw)
            finally:
                _SERVED.reset(token)
        except Exception as error:
            if caller is not None:
                caller.refuse(error)
            raise
        return added

    return add


def _entry(engine: Any, caller: Caller | None) -> AbstractContextManager[None]:
    """A request of a tenant's is counted; what comes from Python is nobody's.

    Raises:
        VLLMValidationError: who it is cannot be told.
        GracefulHTTPError: 401.
    """
    config = TenancyConfig.from_config(engine.vllm_config.additional_config)
    if caller is None or not (config.on or config.counts):
        return nullcontext()
    try:
        tenant = tenant_of(config, caller)
    except PolicyError as error:
        raise VLLMValidationError(str(error), parameter=error.field) from None
    return limits.entry(engine.output_processor, config, tenant)


def entered_from_python(add_request: Callable[..., Any]) -> Callable[..., Any]:
    """``LLMEngine.add_request``, likewise."""

    def add(self: Any, request_id: str, prompt: Any, params: Any, *a: Any, **kw: Any) -> Any:
        kv_policy = policy_of(self.vllm_config)
        if kv_policy is not None and isinstance(prompt, EngineCoreRequest):
            prompt = check(prompt, kv_policy, self.vllm_config, None)
        return add_request(self, request_id, prompt, params, *a, **kw)

    return add


def refuse_pieces(prompt: object) -> None:
    """Refuse a prompt that comes piece by piece.

    vLLM turns what has been said into prompt at each piece, at whatever point of a rollover, and
    the stream outgrows the length on which its reservation of blocks rests.
    """
    if isinstance(prompt, AsyncGenerator):
        raise VLLMValidationError(
            "streaming input (an asynchronous generator as the prompt) is not allowed with "
            "--kv-policy; allowed: a request for each piece, which finds the others cached",
            parameter="prompt",
        )


# -- the checks -----------------------------------------------------------------------------------


def check(
    request: EngineCoreRequest,
    kv_policy: KVPolicy,
    vllm_config: Any,
    system_tokens: int | None,
    served: bool = False,
) -> EngineCoreRequest:
    """The request, settled: what it asks for can be honoured, and the engine core can read it.

    Args:
        request: as vLLM made it; its parameters are this request's own.
        kv_policy: of the engine.
        vllm_config: of the engine's front.
        system_tokens: length of the prompt's leading system message, where it is known.
        served: its client can be told to come again later.

    Raises:
        VLLMValidationError: HTTP 400, naming the field, the value and what is allowed.
    """
    params = request.sampling_params
    if params is None:
        return request
    caller = CALLER.get(None)
    try:
        _bound_numbers(params, vllm_config.model_config.get_vocab_size())
        prompt_tokens = length_from_prompt_token_ids_or_embeds(
            request.prompt_token_ids, request.prompt_embeds
        )
        block_size = vllm_config.cache_config.block_size
        longest = vllm_config.model_config.max_model_len
        endless = _settle_endless(params, caller)
        default = None
        if endless and caller is not None and not caller.names_length:
            params.max_tokens = None  # completions would end after 16
        if not endless and not _names_length(params, caller, longest - prompt_tokens):
            configured = AdmissionConfig.from_config(vllm_config.additional_config)
            default = default_max_tokens(
                configured.default_max_tokens, kv_policy.native, prompt_tokens
            )
        total = settle_length(params, prompt_tokens, longest, default)
        _refuse_unknown_options(params, caller)
        window = _settle_window(request, params, caller, kv_policy)
        check_segment(request, kv_policy, window, prompt_tokens, total, block_size)
        _settle_sinks(request, params, caller, kv_policy, window, vllm_config, system_tokens)
        sealed = seal(request)
        sealed.stream = is_stream(endless, params, total, kv_policy, block_size)
        sealed.served = served
        _settle_tenant(sealed)
        _require_readable(sealed)
    except PolicyError as error:
        raise VLLMValidationError(str(error), parameter=error.field) from None
    _reserve(sealed, params, kv_policy, prompt_tokens)
    return sealed


def _settle_tenant(request: SinkRequest) -> None:
    """Write whose it is into the request, and keep its cached blocks apart where that is asked."""
    entry = limits.ENTRY.get(None)
    if entry is None or not entry.config.on:
        return
    request.tenant = entry.tenant.name
    if entry.config.isolate:
        request.cache_salt = cache_salt(entry.tenant.name, request.cache_salt)


def _reserve(
    request: SinkRequest, params: SamplingParams, kv_policy: KVPolicy, prompt_tokens: int
) -> None:
    """Ask the tenant's limits for all answers of a request.

    Raises:
        GracefulHTTPError: 429.
    """
    entry = limits.ENTRY.get(None)
    if entry is None:
        return
    sinks = stream_policy_of(params, kv_policy.default).sink_tokens
    entry.reserve(params.n, limits.Demand(int(request.stream), sinks, 1), prompt_tokens)


def _bound_numbers(params: SamplingParams, vocab_size: int) -> None:
    """Refuse numbers that the engine core has no room for, in any field.

    Raises:
        PolicyError: naming the field.
    """
    if params.top_k > vocab_size:
        params.top_k = vocab_size  # the same: all of them
    for name in params.__struct_fields__:  # type: ignore[attr-defined]
        if name in ("max_tokens", "min_tokens"):
            continue  # settled with the length
        value = getattr(params, name)
        if name == "seed":
            # Each of n answers has the next one.
            if value is not None and not -INT64_MAX - 1 <= value <= INT64_MAX - (params.n - 1):
                raise PolicyError(name, value, f"{-INT64_MAX - 1} to {INT64_MAX - (params.n - 1)}")
        elif isinstance(value, int) and not -INT32_MAX - 1 <= value <= INT32_MAX:
            raise PolicyError(name, value, f"{-INT32_MAX - 1} to {INT32_MAX}")
        elif isinstance(value, float) and not math.isfinite(value):
            raise PolicyError(name, value, "a finite number")
    for token, bias in (params.logit_bias or {}).items():
        if not math.isfinite(bias):
            raise PolicyError(f"logit_bias.{token}", bias, "a finite number")
    repetition = getattr(params, "repetition_detection", None)
    if repetition is not None:
        for name, value in vars(repetition).items():
            if isinstance(value, int) and value > INT32_MAX:
                raise PolicyError(f"repetition_detection.{name}", value, f"0 to {INT32_MAX}")


def _settle_endless(params: SamplingParams, caller: Caller | None) -> bool:
    """Whether the request asks for an endless answer; nothing of that stays in its parameters.

    Raises:
        PolicyError: it is neither true nor false.
    """
    extra = params.extra_args or {}
    written: Mapping[str, Any] = {} if caller is None else caller.options
    value = written.get(ENDLESS, extra.get(ENDLESS, False))
    if not isinstance(value, bool):
        raise PolicyError(ENDLESS, value, "true or false")
    if value and caller is not None and caller.fields.get("use_beam_search") is True:
        raise PolicyError(ENDLESS, value, "false with use_beam_search: beams end at the context")
    if ENDLESS in extra:
        params.extra_args = {k: v for k, v in extra.items() if k != ENDLESS} or None
    return bool(value)


def _names_length(params: SamplingParams, caller: Caller | None, most: int) -> bool:
    """Whether anybody said how long the answer may be.

    vLLM's routes fill in what is left of ``max_model_len``, or the model's own default where its
    ``generation_config`` has one.

    Args:
        params: as vLLM made them.
        caller: who wrote the request.
        most: what vLLM fills in.
    """
    if params.max_tokens is None:
        return False
    if caller is not None and caller.names_length:
        return True
    return params.max_tokens != most


def _refuse_unknown_options(params: SamplingParams, caller: Caller | None) -> None:
    extra = params.extra_args or {}
    written: Mapping[str, Any] = {} if caller is None else caller.options
    refuse_unknown([*written, *extra], {} if caller is None else caller.fields)


def _settle_window(
    request: EngineCoreRequest,
    params: SamplingParams,
    caller: Caller | None,
    kv_policy: KVPolicy,
) -> int:
    """``W`` of the request, which stays in its parameters where it is not the engine's.

    Raises:
        PolicyError: not a number, or none that this engine can honour.
    """
    extra = params.extra_args or {}
    written: Mapping[str, Any] = {} if caller is None else caller.options
    value = written.get(WINDOW_TOKENS, extra.get(WINDOW_TOKENS))
    rest = {name: v for name, v in extra.items() if name != WINDOW_TOKENS}
    if value is None:
        params.extra_args = rest or None
        return kv_policy.window
    window = require_int(WINDOW_TOKENS, value, 1)
    if window > kv_policy.window:
        allowed = f"1 to {kv_policy.window}, the server's own (--window-tokens)"
        raise PolicyError(WINDOW_TOKENS, window, allowed)
    if window == kv_policy.window:
        params.extra_args = rest or None
        return window
    if not providers.takes_windows(kv_policy.provider):
        raise PolicyError(
            WINDOW_TOKENS,
            window,
            f"none with --sink-attention {kv_policy.provider}, whose CUDA graphs hold one window; "
            f"any other provider takes 1 to {kv_policy.window}",
        )
    if request.prompt_token_ids is None:
        raise PolicyError(WINDOW_TOKENS, window, "none with prompt embeddings")
    params.extra_args = {**rest, WINDOW_TOKENS: window}
    return window


def _settle_sinks(
    request: EngineCoreRequest,
    params: SamplingParams,
    caller: Caller | None,
    kv_policy: KVPolicy,
    window: int,
    vllm_config: Any,
    system_tokens: int | None,
) -> None:
    """Write the request's own ``S`` into its parameters, if it has one."""
    extra = params.extra_args or {}
    written: Mapping[str, Any] = {} if caller is None else caller.options
    # As it was written: vLLM has turned true into 1, and beam search has dropped all of it.
    value = written.get(SINK_TOKENS, extra.get(SINK_TOKENS))
    if system_tokens is None and caller is not None:
        system_tokens = caller.system_tokens
    pool = PoolLimits(vllm_config)
    asked = value is not None
    if not asked:
        params.extra_args = {k: v for k, v in extra.items() if k != SINK_TOKENS} or None
        if not kv_policy.pins_system or system_tokens is None:
            return
        # Nobody asked for so many: as many of them as fit.
        most = kv_policy.native - window
        value = min(system_tokens, most, most_sinks(kv_policy, window, pool.block_size))
    elif value == SYSTEM and system_tokens is not None:
        value = system_tokens
    if request.prompt_token_ids is None:
        raise PolicyError(SINK_TOKENS, value, "none with prompt embeddings")
    prompt_tokens, output_tokens = len(request.prompt_token_ids), params.max_tokens or 0
    try:
        sinks = check_sink_tokens(value, kv_policy, window, prompt_tokens, output_tokens, pool)
    except PolicyError:
        if asked:
            raise
        return
    params.extra_args = {**extra, SINK_TOKENS: sinks}


def check_sink_tokens(
    value: object,
    kv_policy: KVPolicy,
    window: int,
    prompt_tokens: int,
    output_tokens: int,
    pool: PoolLimits,
) -> int:
    """``S`` of a request whose ``W`` is ``window``, if it can be honoured.

    Raises:
        PolicyError: not a number, negative, more than the prompt has, past the model's context
            together with the window, or more than the pool can ever hold.
    """
    if value == SYSTEM:
        raise PolicyError(
            SINK_TOKENS,
            value,
            f"a number of tokens, or {SYSTEM!r} in a chat that begins with a system message "
            "(instructions, or Anthropic's system)",
        )
    if isinstance(value, str):
        raise PolicyError(
            SINK_TOKENS,
            value,
            f"an integer of at least 0, or {SYSTEM!r} in a chat that begins with a system message",
        )
    number = require_int(SINK_TOKENS, value, 0)
    if kv_policy.name == "window" and number:
        raise PolicyError(SINK_TOKENS, number, "0, since the server runs --kv-policy window")
    if number > prompt_tokens:
        raise PolicyError(SINK_TOKENS, number, f"0 to {prompt_tokens}, the length of the prompt")
    most = kv_policy.native - window
    if number > most:
        raise PolicyError(
            SINK_TOKENS,
            number,
            f"0 to {most}: with the window of {window} tokens the cache may not pass "
            f"the model's context of {kv_policy.native}",
        )
    fits = most_sinks(kv_policy, window, pool.block_size)
    if number > fits and prompt_tokens + output_tokens > kv_policy.segment:
        raise PolicyError(
            SINK_TOKENS,
            number,
            f"0 to {fits}: with the window of {window} tokens it must fit in a segment "
            f"of {kv_policy.segment} (--segment-tokens)",
        )
    need = policy.max_blocks(
        number,
        window,
        # Not the prompt alone: after a preemption the output is prefilled as well.
        pool.in_flight_tokens,
        min(prompt_tokens + output_tokens, pool.total_tokens),
        pool.block_size,
    )
    if pool.pool_blocks and need > pool.pool_blocks:
        raise PolicyError(
            SINK_TOKENS,
            number,
            f"fewer: it would need {need} KV blocks and the pool has {pool.pool_blocks}",
        )
    return number


class PoolLimits:
    """What bounds a request's blocks.

    Attributes:
        block_size: tokens in a block.
        in_flight_tokens: most tokens scheduled and not settled.
        total_tokens: bookkeeping limit of a stream.
        pool_blocks: blocks of one engine's pool; 0 where that is not known.
    """

    def __init__(self, vllm_config: Any) -> None:
        cache = vllm_config.cache_config
        self.block_size: int = cache.block_size
        self.in_flight_tokens: int = vllm_config.max_in_flight_tokens
        self.total_tokens: int = vllm_config.model_config.max_model_len
        # The front end has the sum over data-parallel engines.
        pool = (cache.num_gpu_blocks or 0) // vllm_config.parallel_config.data_parallel_size
        self.pool_blocks: int = max(0, pool - 1)  # one block is vLLM's null block


class _Wire:
    """vLLM's own encoder and decoder of requests; they are not safe in several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._encoder = MsgpackEncoder()
        self._decoder = MsgpackDecoder(SinkRequest)

    def round_trip(self, request: SinkRequest) -> None:
        """Write and read a request, as the engine core will."""
        with self._lock:
            self._decoder.decode(self._encoder.encode(request))


_WIRE = _Wire()

#: Fields that vLLM has checked or made itself, and which may be large.
_HEAVY = ("prompt_token_ids", "mm_features", "prompt_embeds", "prompt_is_token_ids")


def _require_readable(request: SinkRequest) -> None:
    """Refuse what cannot cross to the engine core.

    An integer of 70 bits, half a surrogate pair, a value of the wrong type: vLLM would fail after
    it has registered the request, or in the engine's input thread, which then reads no more.

    Raises:
        PolicyError: with the encoder's reason.
    """
    light = msgspec.structs.replace(request, **dict.fromkeys(_HEAVY))
    try:
        _WIRE.round_trip(light)
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        raise PolicyError(
            "request", type(error).__name__, f"values that can be sent to the engine: {error}"
        ) from None
