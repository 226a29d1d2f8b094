"""How long a request may be, as everything in front of the engine is told.

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

from vllm_sink.config.kv_policy import KVPolicy, policy_of

#: The length of a request that has no limit, as the front end is told: the largest integer that
#: every reader of JSON has, so that any ``max_tokens`` that a client can mean is taken. What the
#: engine is told in its place is settled with the request's other parameters.
UNLIMITED = (1 << 53) - 1

#: The attribute of the front end's ``ModelConfig`` that says what clients are told instead.
_ADVERTISED = "sink_context"


def longest(kv_policy: KVPolicy) -> int:
    """The most tokens of a request, prompt and output together."""
    return kv_policy.stream_tokens or UNLIMITED


def with_stream_length(init: Callable[..., None]) -> Callable[..., None]:
    """``__init__`` of an engine's front (``AsyncLLM``, ``LLMEngine``) that knows streams."""

    def initialise(self: Any, *args: Any, **kwargs: Any) -> None:
        init(self, *args, **kwargs)
        kv_policy = policy_of(self.vllm_config)
        if kv_policy is None:
            return
        config = copy.copy(self.vllm_config)
        config.model_config = copy.copy(config.model_config)
        config.model_config.max_model_len = longest(kv_policy)
        context = min(kv_policy.native, longest(kv_policy))
        setattr(config.model_config, _ADVERTISED, context)
        self.vllm_config, self.model_config = config, config.model_config
        for part in (self.input_processor, self.renderer, self.input_processor.renderer):
            part.model_config = config.model_config
        self.input_processor.vllm_config = config

    return initialise


def with_context_named(respond: Callable[..., Any]) -> Callable[..., Any]:
    """A response with ``max_model_len``, where a client finds how long a request may be.

    Clients count what is left of it, or cut their history to it: they are told where a request ends
    that does not ask for more.
    """

    async def named(self: Any, *args: Any, **kwargs: Any) -> Any:
        response = await respond(self, *args, **kwargs)
        length = getattr(self.model_config, _ADVERTISED, None)
        if length is not None:
            for part in [response, *getattr(response, "data", ())]:
                if getattr(part, "max_model_len", None) is not None:
                    part.max_model_len = length
        return response

    return named
