"""Options that a request may set for this project, and names that are mistaken for them."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Mapping
from typing import Any, Protocol

from vllm_sink.client_request import ClientRequest
from vllm_sink.config.kv_policy import SYSTEM
from vllm_sink.errors import PolicyError
from vllm_sink.policy import StreamPolicy

__all__ = [
    "ENDLESS",
    "OPTIONS",
    "SINK_TOKENS",
    "SYSTEM",
    "SYSTEM_TOKENS",
    "WINDOW_TOKENS",
    "refuse_unknown",
    "set_option",
    "stream_policy_of",
    "take_option",
]

#: The key in ``vllm_xargs`` (HTTP) and in ``SamplingParams.extra_args`` (Python).
SINK_TOKENS = "sink_tokens"

#: Likewise: the request's own window.
WINDOW_TOKENS = "window_tokens"

#: The key of a rendered prompt that holds the length of its system message, set by the renderer's
#: wrapper (``vllm_sink/serving/system_prompt.py``).
SYSTEM_TOKENS = "sink_system_tokens"

#: An option: the request is a stream, which no length but its own ``max_tokens`` ends.
ENDLESS = "endless"

#: Every option of a request.
OPTIONS = (SINK_TOKENS, WINDOW_TOKENS, ENDLESS)

#: Parts of a name that is meant for an option, and the option. (A bare ``window`` may be another
#: plugin's.)
_MEANT = {
    "sink": SINK_TOKENS,
    "window_token": WINDOW_TOKENS,
    "kv_window": WINDOW_TOKENS,
    "endless": ENDLESS,
}

#: Similarity from which a name counts as a misspelt option.
_ALIKE = 0.9

#: Fields that hold a request's settings, into which an option may be put by mistake.
_HOLDERS = ("extra_body", "extra_args", "sampling_params", "chat_template_kwargs")

#: Example values for errors.
_EXAMPLES: dict[str, int | bool] = {SINK_TOKENS: 4, WINDOW_TOKENS: 1024, ENDLESS: True}


class _Params(Protocol):
    extra_args: dict[str, Any] | None


def stream_policy_of(params: _Params | None, default: StreamPolicy) -> StreamPolicy:
    """``S`` and ``W`` of a request that has been checked; ``default``'s where it names none."""
    extra = None if params is None else params.extra_args
    if not extra:
        return default
    return StreamPolicy(
        extra.get(SINK_TOKENS, default.sink_tokens),
        extra.get(WINDOW_TOKENS, default.window_tokens),
    )


def take_option(
    params: _Params, client: ClientRequest | None, name: str, default: Any = None
) -> Any:
    """Remove an option from a request's parameters; its value, ``default`` if it is not set.

    The value is as the client wrote it: vLLM turns true into 1, and beam search drops options.

    Args:
        params: vLLM's sampling parameters, this request's own.
        client: the HTTP request, if there is one.
        name: one of ``OPTIONS``.
        default: of an option that is not there.
    """
    extra = params.extra_args or {}
    written: Mapping[str, Any] = {} if client is None else client.options
    if name in extra:
        params.extra_args = {key: value for key, value in extra.items() if key != name} or None
    return written.get(name, extra.get(name, default))


def set_option(params: _Params, name: str, value: Any) -> None:
    """Write an option that has been checked into a request's parameters."""
    params.extra_args = {**(params.extra_args or {}), name: value}


def refuse_unknown(options: Iterable[str], fields: Mapping[str, Any]) -> None:
    """Refuse a misspelt or misplaced option of this project.

    vLLM passes on whatever a request carries, and ignores unknown fields, so nothing else reports
    it.

    Args:
        options: names in ``vllm_xargs``, or ``extra_args``.
        fields: the request's own fields.

    Raises:
        PolicyError: naming the option that is meant.
    """
    for name in options:
        if _meant(name) and name not in OPTIONS:
            raise PolicyError(f"vllm_xargs.{name}", name, " or ".join(map(repr, OPTIONS)))
    for name in fields:
        if option := _meant(name):
            raise _misplaced(name, option, "a field of the request")
        if name != "vllm_xargs" and difflib.get_close_matches(name, ["vllm_xargs"], 1, _ALIKE):
            raise PolicyError(name, "a field of the request", "vllm_xargs")
    for holder in _HOLDERS:
        inside = fields.get(holder)
        for name in inside if isinstance(inside, Mapping) else ():
            if name in OPTIONS:
                raise _misplaced(f"{holder}.{name}", name, f"in {holder}")
            if name == "vllm_xargs":
                raise PolicyError(f"{holder}.{name}", f"in {holder}", "a field of the request")


def _misplaced(name: str, option: str, where: str) -> PolicyError:
    example = json.dumps({"vllm_xargs": {option: _EXAMPLES[option]}})
    return PolicyError(name, where, f"an option: {example[1:-1]}")


def _meant(name: str) -> str | None:
    """The option that a name is meant for, if any."""
    lower = str(name).lower()
    for part, option in _MEANT.items():
        if part in lower:
            return option
    return next(iter(difflib.get_close_matches(lower, OPTIONS, 1, _ALIKE)), None)
