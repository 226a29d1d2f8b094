"""How long a request may become, and what it may ask for if it outgrows a segment."""

from __future__ import annotations

from typing import Any

from vllm_sink import segments
from vllm_sink.config.kv_policy import KVPolicy
from vllm_sink.errors import PolicyError


def settle_length(params: Any, prompt_tokens: int, longest: int, default: int | None) -> int:
    """Set ``max_tokens``; return the request's maximum length, prompt and output together.

    Args:
        params: vLLM's sampling parameters, this request's own.
        prompt_tokens: length of the prompt.
        longest: maximum length of any stream of the engine.
        default: ``max_tokens`` of a request that names no length; None if this one does.
    """
    longest = min(longest, segments.ENDLESS_TOKENS)
    room = longest - prompt_tokens
    max_tokens = params.max_tokens
    if default is not None:
        max_tokens = default if max_tokens is None else min(max_tokens, default)
    params.max_tokens = room if max_tokens is None else min(max_tokens, room)
    # vLLM's V2 runner adds it to the prompt's length in 32 bits.
    params.min_tokens = min(params.min_tokens, params.max_tokens)
    return int(prompt_tokens + params.max_tokens)


def default_max_tokens(configured: int | None, native_context: int, prompt_tokens: int) -> int:
    """The answer's length where a request names none.

    As in vLLM it ends where the model's context does. A prompt that fills the context by itself,
    which vLLM would refuse, gets an answer of the context's length.

    Args:
        configured: ``--sink-default-max-tokens``.
        native_context: positions that the model has learned.
        prompt_tokens: length of the prompt.
    """
    if configured is not None:
        return configured
    left = native_context - prompt_tokens
    return left if left > 0 else native_context


def is_stream(
    endless: bool, params: Any, total_tokens: int, kv_policy: KVPolicy, block_size: int
) -> bool:
    """Whether a request may outgrow what can be computed again.

    Args:
        endless: whether it asks to be endless.
        params: its sampling parameters, settled.
        total_tokens: its maximum length, prompt and output together.
        kv_policy: of the engine.
        block_size: tokens in a block.
    """
    if endless or params.max_tokens > kv_policy.native:
        return True
    # A long prompt's early tokens leave its bookkeeping.
    return total_tokens > segments.full_at(kv_policy.segment, block_size)


def check_segment(
    request: Any,
    kv_policy: KVPolicy,
    window_tokens: int,
    prompt_tokens: int,
    total_tokens: int,
    block_size: int,
) -> None:
    """Refuse what cannot be computed for a stream whose early tokens are gone.

    Args:
        request: vLLM's ``EngineCoreRequest``.
        kv_policy: of the engine.
        window_tokens: ``W`` of the request.
        prompt_tokens: length of the prompt.
        total_tokens: the request's maximum length, prompt and output together.
        block_size: tokens in a block.

    Raises:
        PolicyError: naming the parameter.
    """
    limit = kv_policy.stream_tokens
    full = segments.full_at(kv_policy.segment, block_size)
    if total_tokens <= full or (limit is not None and limit <= kv_policy.segment):
        return
    params = request.sampling_params
    hint = f"up to {full} tokens (--segment-tokens {kv_policy.segment})"
    if request.prompt_embeds is not None:
        raise PolicyError(
            "prompt_embeds",
            f"{prompt_tokens} tokens",
            f"tokens, or embeddings and max_tokens of together {hint}",
        )
    if params.prompt_logprobs is not None and prompt_tokens > full:
        raise PolicyError("prompt_logprobs", params.prompt_logprobs, f"none, or a prompt of {hint}")
    # The V2 runner finds both by the prompt's length, which a rollover lowers.
    for name in ("thinking_token_budget", "prompt_logprob_token_ids", "trace_decode_token_ids"):
        if (value := getattr(params, name, None)) is not None:
            shown = value if isinstance(value, int) else f"{len(value)} rows"
            raise PolicyError(name, shown, f"none, or a prompt and max_tokens of together {hint}")
    repetition = getattr(params, "repetition_detection", None)
    if repetition is not None:
        span = repetition.max_pattern_size * repetition.min_count
        if span > window_tokens:
            raise PolicyError(
                "repetition_detection",
                f"{repetition.max_pattern_size} x {repetition.min_count}",
                f"patterns that fit in the window of {window_tokens} tokens, or a prompt and "
                f"max_tokens of together {hint}",
            )


def max_sink_tokens(kv_policy: KVPolicy, window_tokens: int, block_size: int) -> int:
    """The largest ``S`` with which a stream of this ``W`` can proceed in a segment."""
    spare = kv_policy.segment - segments.min_tokens(0, window_tokens, block_size)
    return spare // block_size * block_size
