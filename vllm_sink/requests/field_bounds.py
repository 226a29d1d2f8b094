"""Numbers that the engine core has room for, and requests that can be sent to it.

vLLM's front end bounds most numbers by ``max_model_len``; under the policy it has no such limit.
"""

from __future__ import annotations

import math
import threading

import msgspec
from vllm.sampling_params import SamplingParams
from vllm.v1.serial_utils import MsgpackDecoder, MsgpackEncoder

from vllm_sink.errors import PolicyError
from vllm_sink.requests.core_request import SinkRequest

INT32_MAX = (1 << 31) - 1
INT64_MAX = (1 << 63) - 1


def bound_numbers(params: SamplingParams, vocab_size: int) -> None:
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
            # Each of n answers takes the next seed.
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


class _Wire:
    """vLLM's own encoder and decoder of requests, which are not thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._encoder = MsgpackEncoder()
        self._decoder = MsgpackDecoder(SinkRequest)

    def round_trip(self, request: SinkRequest) -> None:
        """Encode and decode a request, as on the way to the engine core."""
        with self._lock:
            self._decoder.decode(self._encoder.encode(request))


_WIRE = _Wire()

#: Fields that vLLM has checked or made itself, and which may be large.
_HEAVY = ("prompt_token_ids", "mm_features", "prompt_embeds", "prompt_is_token_ids")


def require_sendable(request: SinkRequest) -> None:
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
