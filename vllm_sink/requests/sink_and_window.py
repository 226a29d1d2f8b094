"""``S`` and ``W`` of a request: its options ``sink_tokens`` and ``window_tokens``."""

from __future__ import annotations

from typing import Any

from vllm.sampling_params import SamplingParams
from vllm.v1.engine import EngineCoreRequest

from vllm_sink import policy
from vllm_sink.attention import providers
from vllm_sink.client_request import ClientRequest
from vllm_sink.config.kv_policy import SYSTEM, KVPolicy
from vllm_sink.config.sections import require_int
from vllm_sink.errors import PolicyError
from vllm_sink.requests.length_limits import max_sink_tokens
from vllm_sink.requests.options import SINK_TOKENS, WINDOW_TOKENS, set_option, take_option


def settle_window(
    request: EngineCoreRequest,
    params: SamplingParams,
    client: ClientRequest | None,
    kv_policy: KVPolicy,
) -> int:
    """``W`` of the request; it stays in its parameters if it is not the engine's.

    Raises:
        PolicyError: not a number, or one that this engine cannot honour.
    """
    value = take_option(params, client, WINDOW_TOKENS)
    if value is None:
        return kv_policy.window
    window = require_int(WINDOW_TOKENS, value, 1)
    if window > kv_policy.window:
        allowed = f"1 to {kv_policy.window}, the server's own (--window-tokens)"
        raise PolicyError(WINDOW_TOKENS, window, allowed)
    if window == kv_policy.window:
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
    set_option(params, WINDOW_TOKENS, window)
    return window


def settle_sinks(
    request: EngineCoreRequest,
    params: SamplingParams,
    client: ClientRequest | None,
    kv_policy: KVPolicy,
    window: int,
    vllm_config: Any,
    system_tokens: int | None,
) -> None:
    """Write the request's own ``S`` into its parameters, if it has one."""
    value = take_option(params, client, SINK_TOKENS)
    if system_tokens is None and client is not None:
        system_tokens = client.system_tokens
    pool = PoolLimits(vllm_config)
    named = value is not None
    if not named:
        if not kv_policy.pins_system or system_tokens is None:
            return
        # The request does not name a number, so none is refused: as many as fit are pinned.
        maximum = kv_policy.native - window
        value = min(system_tokens, maximum, max_sink_tokens(kv_policy, window, pool.block_size))
    elif value == SYSTEM and system_tokens is not None:
        value = system_tokens
    if request.prompt_token_ids is None:
        raise PolicyError(SINK_TOKENS, value, "none with prompt embeddings")
    prompt_tokens, output_tokens = len(request.prompt_token_ids), params.max_tokens or 0
    try:
        sinks = check_sink_tokens(value, kv_policy, window, prompt_tokens, output_tokens, pool)
    except PolicyError:
        if named:
            raise
        return
    set_option(params, SINK_TOKENS, sinks)


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
        raise PolicyError(SINK_TOKENS, number, "0: the server runs --kv-policy window")
    if number > prompt_tokens:
        raise PolicyError(SINK_TOKENS, number, f"0 to {prompt_tokens}, the length of the prompt")
    maximum = kv_policy.native - window
    if number > maximum:
        raise PolicyError(
            SINK_TOKENS,
            number,
            f"0 to {maximum}: with the window of {window} tokens the cache may not pass "
            f"the model's context of {kv_policy.native}",
        )
    fits = max_sink_tokens(kv_policy, window, pool.block_size)
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
        in_flight_tokens: maximum of tokens scheduled and not settled.
        total_tokens: bookkeeping limit of a stream.
        pool_blocks: blocks of one engine's pool; 0 if unknown.
    """

    def __init__(self, vllm_config: Any) -> None:
        cache = vllm_config.cache_config
        self.block_size: int = cache.block_size
        self.in_flight_tokens: int = vllm_config.max_in_flight_tokens
        self.total_tokens: int = vllm_config.model_config.max_model_len
        # The front end has the sum over data-parallel engines.
        pool = (cache.num_gpu_blocks or 0) // vllm_config.parallel_config.data_parallel_size
        self.pool_blocks: int = max(0, pool - 1)  # one block is vLLM's null block
