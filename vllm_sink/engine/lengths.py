"""What a request may ask for that would outgrow its segment, and how long it may become."""

from __future__ import annotations

from typing import Any

from vllm_sink import segments
from vllm_sink.errors import PolicyError
from vllm_sink.policy import KVPolicy


def settle_length(params: Any, prompt_tokens: int, longest: int) -> int:
    """The most tokens that the request can have; its ``max_tokens`` is cut to what is left.

    Args:
        params: vLLM's sampling parameters, this request's own.
        prompt_tokens: length of the prompt.
        longest: of any stream of the engine; past what stands for "until stopped", that.
    """
    longest = min(longest, segments.ENDLESS_TOKENS)
    most = longest - prompt_tokens
    params.max_tokens = most if params.max_tokens is None else min(params.max_tokens, most)
    # vLLM's V2 runner adds it to the prompt's length in 32 bits.
    params.min_tokens = min(params.min_tokens, params.max_tokens)
    return int(prompt_tokens + params.max_tokens)


def check_segment(
    request: Any, kv_policy: KVPolicy, prompt_tokens: int, total_tokens: int, block_size: int
) -> None:
    """Refuse what cannot be computed for a stream whose early tokens are gone.

    Args:
        request: vLLM's ``EngineCoreRequest``.
        kv_policy: of the engine.
        prompt_tokens: length of the prompt.
        total_tokens: the most tokens that the request can have.
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
            told = value if isinstance(value, int) else f"{len(value)} rows"
            raise PolicyError(name, told, f"none, or a prompt and max_tokens of together {hint}")
    repetition = getattr(params, "repetition_detection", None)
    if repetition is not None:
        span = repetition.max_pattern_size * repetition.min_count
        if span > kv_policy.window:
            raise PolicyError(
                "repetition_detection",
                f"{repetition.max_pattern_size} x {repetition.min_count}",
                f"patterns that fit in the window of {kv_policy.window} tokens, or a prompt and "
                f"max_tokens of together {hint}",
            )


def most_sinks(kv_policy: KVPolicy, block_size: int) -> int:
    """The largest ``S`` with which a stream can proceed in a segment."""
    spare = kv_policy.segment - segments.least_tokens(0, kv_policy.window, block_size)
    return spare // block_size * block_size
