"""First step of start-up: every number of the policy, from the arguments and the model's config.

Only ``additional_config`` is changed, to what was resolved.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from vllm_sink.config.kv_policy import KVPolicy
from vllm_sink.startup import features, models


@dataclass(frozen=True)
class Plan:
    """The settings of an engine under the policy.

    Attributes:
        kv_policy: with every number chosen, but not the attention provider.
        model: what vLLM's config says of the model.
    """

    kv_policy: KVPolicy
    model: models.Model

    @property
    def max_model_len(self) -> int:
        """vLLM's own limit, that of its bookkeeping: a segment.

        The front end has the stream's (``vllm_sink/streaming/front_end_max_len.py``).
        """
        segment = self.kv_policy.segment
        return min(segment, self.kv_policy.stream_tokens or segment)


def resolve(engine_args: Any, kv_policy: KVPolicy) -> Plan:
    """Choose the numbers, and refuse what cannot be served, from the arguments alone.

    Raises:
        PolicyError: a number is out of range for this model.
        UnsupportedError: the model, or a flag that the policy cannot honour.
    """
    features.refuse_arguments(engine_args)
    model = read_model(engine_args)
    wanted = engine_args.max_model_len
    limit = None if wanted in (None, -1) else wanted
    return Plan(replace(models.resolve(kv_policy, model), stream_tokens=limit), model)


def read_model(engine_args: Any) -> models.Model:
    """What the policy needs to know about the model, from its config alone.

    Raises:
        UnsupportedError: with the reason.
    """
    wanted, engine_args.max_model_len = engine_args.max_model_len, None
    try:
        return models.examine(engine_args.create_model_config())
    finally:
        engine_args.max_model_len = wanted
