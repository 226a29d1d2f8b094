"""How long beams may become: at most the model's context.

Beam search asks the engine for one token at a time and sends the whole text each time
(``vllm/entrypoints/generate/beam_search/online.py``), as often as ``max_tokens`` says; by default
that is the front end's ``max_model_len``, which a stream does not have. Its steps are checked as
any request does, so a beam has the sinks that were asked for.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from vllm.exceptions import VLLMValidationError

from vllm_sink.config.kv_policy import policy_of
from vllm_sink.streaming.front_end_max_len import longest


def end_at_context(
    beam_search: Callable[..., Any],
    serving: Any,
    prompt: Any,
    request_id: str,
    params: Any,
    *args: Any,
    **kwargs: Any,
) -> Any:
    """``beam_search`` that ends at the model's context at the latest."""
    kv_policy = policy_of(serving.engine_client.vllm_config)
    if kv_policy is not None:
        length = len(prompt.get("prompt_token_ids", ()))
        room = kv_policy.native - length
        unset = params.max_tokens >= longest(kv_policy) - length
        if room < 1 or (params.max_tokens > room and not unset):
            raise VLLMValidationError(
                f"max_tokens: {params.max_tokens} is not allowed with use_beam_search and a "
                f"prompt of {length} tokens; allowed: 1 to {max(room, 0)}, within the model's "
                f"context of {kv_policy.native}",
                parameter="max_tokens",
                value=params.max_tokens,
            )
        params.max_tokens = min(params.max_tokens, room)
    return beam_search(prompt, request_id, params, *args, **kwargs)
