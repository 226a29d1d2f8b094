"""The maximum length of a request, in front of the engine.

vLLM has one number for two things, ``model_config.max_model_len``: the size of the scheduler's and
the worker's buffers, and the length at which the front end refuses or cuts a request (the
protocols, ``get_max_tokens``, the renderer, the input processor). Under the policy the first is a
segment and the second is the stream's own limit. So the front end gets a config of its own, which
differs in that number; the engine core has been started with the other by then.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from vllm_sink.compat.attached import Attached
from vllm_sink.config.kv_policy import KVPolicy, policy_of

#: The largest integer that every JSON parser can represent (RFC 8259, section 6). Where a stream
#: has no limit it is the front end's ``max_model_len``, so that any ``max_tokens`` is accepted; the
#: engine gets ``segments.ENDLESS_TOKENS`` in its place.
MAX_JSON_INTEGER = (1 << 53) - 1

#: On the front end's ``ModelConfig``: the length that clients see instead.
_CONTEXT: Attached[int | None] = Attached("sink_context", None)


def longest(kv_policy: KVPolicy) -> int:
    """The maximum length of a request, prompt and output together."""
    return kv_policy.stream_tokens or MAX_JSON_INTEGER


def separate_front_end_config(
    init: Callable[..., None], engine: Any, *args: Any, **kwargs: Any
) -> None:
    """``__init__`` of ``AsyncLLM`` or ``LLMEngine`` that gives it a config of its own."""
    init(*args, **kwargs)
    kv_policy = policy_of(engine.vllm_config)
    if kv_policy is None:
        return
    config = copy.copy(engine.vllm_config)
    config.model_config = copy.copy(config.model_config)
    config.model_config.max_model_len = longest(kv_policy)
    _CONTEXT.set(config.model_config, min(kv_policy.native, longest(kv_policy)))
    engine.vllm_config, engine.model_config = config, config.model_config
    for part in (engine.input_processor, engine.renderer, engine.input_processor.renderer):
        part.model_config = config.model_config
    engine.input_processor.vllm_config = config


async def name_context(respond: Callable[..., Any], serving: Any, *args: Any, **kwargs: Any) -> Any:
    """A response whose ``max_model_len`` tells clients how long a request may be.

    Clients compute the remaining room from it, or cut their history to it, so they get the length
    at which a request ends that does not ask for more.
    """
    response = await respond(*args, **kwargs)
    context = _CONTEXT.get(serving.model_config)
    if context is not None:
        for part in [response, *getattr(response, "data", ())]:
            if getattr(part, "max_model_len", None) is not None:
                part.max_model_len = context
    return response
