"""What a request asks for, checked before anything is allocated for it.

Wraps ``InputProcessor.process_inputs`` (``vllm/v1/engine/input_processor.py``), through which every
request goes, by HTTP or Python: the one place that has its prompt's length and its parameters.
vLLM's own hook for parameters (``LogitsProcessor.validate_params``) does not see the prompt.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from typing import Any

from vllm.exceptions import VLLMValidationError
from vllm.utils import length_from_prompt_token_ids_or_embeds

from vllm_sink import policy
from vllm_sink.engine.lengths import check_segment, most_sinks, settle_length
from vllm_sink.errors import PolicyError
from vllm_sink.policy import KVPolicy, policy_of
from vllm_sink.request_args import SINK_TOKENS, SYSTEM, misspelt


def check_sink_tokens(
    value: object,
    kv_policy: KVPolicy,
    prompt_tokens: int,
    output_tokens: int,
    pool_blocks: int,
    limits: PoolLimits,
) -> int:
    """``S`` of a request, if it can be honoured.

    Raises:
        PolicyError: not a number, negative, more than the prompt has, past the model's context
            together with the window, or more than the pool can ever hold.
    """
    if value == SYSTEM:
        raise PolicyError(
            SINK_TOKENS, value, "a number here; 'system' is for the chat completions endpoint"
        )
    if isinstance(value, str):
        raise PolicyError(
            SINK_TOKENS,
            value,
            f"an integer of at least 0, or {SYSTEM!r} in a chat that begins with a system message",
        )
    number = policy.require_int(SINK_TOKENS, value, 0)
    if kv_policy.name == "window" and number:
        raise PolicyError(SINK_TOKENS, number, "0, since the server runs --kv-policy window")
    if number > prompt_tokens:
        raise PolicyError(SINK_TOKENS, number, f"0 to {prompt_tokens}, the length of the prompt")
    most = kv_policy.native - kv_policy.window
    if number > most:
        raise PolicyError(
            SINK_TOKENS,
            number,
            f"0 to {most}: with the window of {kv_policy.window} tokens the cache may not pass "
            f"the model's context of {kv_policy.native}",
        )
    fits = most_sinks(kv_policy, limits.block_size)
    if number > fits and prompt_tokens + output_tokens > kv_policy.segment:
        raise PolicyError(
            SINK_TOKENS,
            number,
            f"0 to {fits}: with the window of {kv_policy.window} tokens it must fit in a segment "
            f"of {kv_policy.segment} (--segment-tokens)",
        )
    need = policy.max_blocks(
        number,
        kv_policy.window,
        # Not the prompt alone: after a preemption the output is prefilled as well.
        limits.in_flight_tokens,
        min(prompt_tokens + output_tokens, limits.total_tokens),
        limits.block_size,
    )
    if pool_blocks and need > pool_blocks:
        raise PolicyError(
            SINK_TOKENS,
            number,
            f"fewer: it would need {need} KV blocks and the pool has {pool_blocks}",
        )
    return number


class PoolLimits:
    """What bounds a request's blocks.

    Attributes:
        block_size: tokens in a block.
        in_flight_tokens: most tokens scheduled and not settled.
        total_tokens: bookkeeping limit of a stream.
    """

    def __init__(self, vllm_config: Any) -> None:
        self.block_size: int = vllm_config.cache_config.block_size
        self.in_flight_tokens: int = vllm_config.max_in_flight_tokens
        self.total_tokens: int = vllm_config.model_config.max_model_len


def checked(process_inputs: Callable[..., Any]) -> Callable[..., Any]:
    """``process_inputs`` that also checks and settles ``sink_tokens``."""

    def with_sinks(self: Any, *args: Any, **kwargs: Any) -> Any:
        request = process_inputs(self, *args, **kwargs)
        kv_policy = policy_of(self.vllm_config)
        params = request.sampling_params
        if kv_policy is None or params is None:
            return request
        prompt_tokens = length_from_prompt_token_ids_or_embeds(
            request.prompt_token_ids, request.prompt_embeds
        )
        total = settle_length(params, prompt_tokens, self.model_config.max_model_len)
        block_size = self.vllm_config.cache_config.block_size
        try:
            check_segment(request, kv_policy, prompt_tokens, total, block_size)
        except PolicyError as error:
            raise VLLMValidationError(str(error), parameter=error.field) from None
        extra = params.extra_args or {}
        if (unknown := misspelt(extra)) is not None:
            raise VLLMValidationError(
                f"vllm_xargs: {unknown!r} is not allowed; allowed: {SINK_TOKENS!r}",
                parameter=unknown,
                value=extra[unknown],
            )
        value = extra.get(SINK_TOKENS)
        if value is None:
            return request
        if request.prompt_token_ids is None:
            raise VLLMValidationError(
                f"{SINK_TOKENS}: {value!r} is not allowed with prompt embeddings"
            )
        cache = self.vllm_config.cache_config
        # One block is vLLM's null block; the front end has the sum over data-parallel engines.
        pool = (cache.num_gpu_blocks or 0) // self.vllm_config.parallel_config.data_parallel_size
        try:
            sinks = check_sink_tokens(
                value,
                kv_policy,
                len(request.prompt_token_ids),
                params.max_tokens,
                max(0, pool - 1),
                PoolLimits(self.vllm_config),
            )
        except PolicyError as error:
            raise VLLMValidationError(str(error), parameter=SINK_TOKENS, value=value) from None
        params.extra_args = {**params.extra_args, SINK_TOKENS: sinks}
        return request

    return with_sinks


def in_one_piece(add_request: Callable[..., Any]) -> Callable[..., Any]:
    """``AsyncLLM.add_request`` that refuses a prompt which comes piece by piece.

    vLLM turns what has been said into prompt at each piece, at whatever point of a rollover, and
    the stream outgrows the length on which its reservation of blocks rests.
    """

    async def add(self: Any, request_id: str, prompt: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(prompt, AsyncGenerator) and policy_of(self.vllm_config) is not None:
            raise VLLMValidationError(
                "streaming input (an asynchronous generator as the prompt) is not allowed with "
                "--kv-policy; allowed: a request for each piece, which finds the others cached",
                parameter="prompt",
            )
        return await add_request(self, request_id, prompt, *args, **kwargs)

    return add
