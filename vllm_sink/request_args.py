"""What a request may ask of this project: the names of its options, and what they may be."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any, Protocol

from vllm_sink.errors import PolicyError
from vllm_sink.policy import SYSTEM

__all__ = ["ENDLESS", "OPTIONS", "SINK_TOKENS", "SYSTEM", "refuse_unknown", "sink_tokens_of"]

#: The key in ``vllm_xargs`` (HTTP) and in ``SamplingParams.extra_args`` (Python).
SINK_TOKENS = "sink_tokens"

#: Another: the request is a stream, which only its client or its ``max_tokens`` ends.
ENDLESS = "endless"

#: Every option of a request's.
OPTIONS = (SINK_TOKENS, ENDLESS)

#: Other spellings that can only be meant for these.
_ALSO = ("endless",)


class _Params(Protocol):
    extra_args: dict[str, Any] | None


def sink_tokens_of(params: _Params | None, default: int) -> int:
    """``S`` of a request that has been checked; ``default`` if it names none."""
    extra = None if params is None else params.extra_args
    return default if not extra else extra.get(SINK_TOKENS, default)


def refuse_unknown(options: Iterable[str], fields: Iterable[str]) -> None:
    """Refuse a name that can only be meant for this project and is none of its own.

    vLLM passes on whatever a request carries, and ignores a field that it does not know, so nothing
    else reports it.

    Args:
        options: names in ``vllm_xargs``, or ``extra_args``.
        fields: names of the request's own fields.

    Raises:
        PolicyError: with the name that is meant.
    """
    for name in options:
        if _for_us(name) and name not in OPTIONS:
            raise PolicyError(f"vllm_xargs.{name}", name, " or ".join(map(repr, OPTIONS)))
    for name in fields:
        if _for_us(name):
            option = {ENDLESS: True} if "sink" not in str(name).lower() else {SINK_TOKENS: 4}
            example = json.dumps({"vllm_xargs": option})
            raise PolicyError(name, "a field of the request", f"an option: {example[1:-1]}")


def _for_us(name: str) -> bool:
    return "sink" in str(name).lower() or str(name).lower() in _ALSO
