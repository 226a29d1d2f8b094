"""``"sink_tokens": "system"``: pin the leading system message as the chat template renders it.

Wraps ``OnlineRenderer.preprocess_chat`` (``vllm/renderers/online_renderer.py``), where a request's
messages, its template and its tokens meet: of chats, batches of them, Responses
(``instructions``), Anthropic's Messages (``system``) and beams. Later hooks see the tokens alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from vllm.exceptions import VLLMValidationError
from vllm.logger import init_logger

from vllm_sink.client_request import CLIENT_REQUEST
from vllm_sink.config.kv_policy import policy_of
from vllm_sink.requests.options import SINK_TOKENS, SYSTEM, SYSTEM_TOKENS

logger = init_logger("vllm.sink")

#: Roles that open a conversation with instructions.
_SYSTEM_ROLES = ("system", "developer")

#: Two user messages that share no first token: what their renderings share is the system message.
_PROBES = ("a", "1")

#: What a rendering of the system message alone must not do: begin an answer, or leave one open.
_ALONE = {"add_generation_prompt": False, "continue_final_message": False}


async def count_system_tokens(
    preprocess_chat: Callable[..., Any],
    renderer: Any,
    request: Any,
    messages: Any,
    *args: Any,
    **kwargs: Any,
) -> Any:
    """``preprocess_chat``: counts the leading system message if it may be pinned.

    The number travels beside the tokens (``SYSTEM_TOKENS``), and with the client's request, because
    beam search makes prompts of its own.
    """
    rendered = await preprocess_chat(request, messages, *args, **kwargs)
    kv_policy = policy_of(renderer.renderer.config)
    if kv_policy is None:
        return rendered
    client = CLIENT_REQUEST.get(None)
    written = (getattr(request, "vllm_xargs", None) or {}) if client is None else client.options
    wanted = written.get(SINK_TOKENS, SYSTEM if kv_policy.pins_system else None)
    if wanted != SYSTEM:
        return rendered
    leading = _leading(messages)
    if not leading:
        if SINK_TOKENS not in written:
            return rendered
        raise VLLMValidationError(
            f"{SINK_TOKENS}: {SYSTEM!r} is not allowed without a leading system message; "
            "allowed: a number of tokens, or a conversation that begins with a system message",
            parameter=SINK_TOKENS,
            value=SYSTEM,
        )

    async def tokens_of(shown: list[Any]) -> Sequence[int]:
        _, (alone,) = await preprocess_chat(_copy(request), shown, *args, **kwargs)
        tokens: Sequence[int] = alone["prompt_token_ids"]
        return tokens

    _, (prompt,) = rendered
    shared = await _shared(tokens_of, messages[:leading])
    prompt[SYSTEM_TOKENS] = _common(prompt["prompt_token_ids"], shared)
    if client is not None:
        client.system_tokens = prompt[SYSTEM_TOKENS]
    return rendered


async def _shared(tokens_of: Callable[..., Any], system: list[Any]) -> Sequence[int]:
    """The tokens of the system message alone, or of what any user message would follow."""
    try:
        alone: Sequence[int] = await tokens_of(system)
        return alone
    except Exception as error:
        # A template raises whatever it likes, Jinja's errors included.
        logger.debug("The chat template does not render a system message alone: %s", error)
    # Some templates need a user turn (Mistral, Gemma): take what two different ones share.
    shown = [[*system, {"role": "user", "content": probe}] for probe in _PROBES]
    rendered = [await tokens_of(messages) for messages in shown]
    return rendered[0][: _common(*rendered)]


def _copy(request: Any) -> Any:
    """The request as it would be with the system message alone."""
    known = type(request).model_fields
    return request.model_copy(update={k: v for k, v in _ALONE.items() if k in known})


def _leading(messages: list[Any]) -> int:
    """How many leading messages of a conversation are instructions."""
    for i, message in enumerate(messages):
        if _role(message) not in _SYSTEM_ROLES:
            return i
    return len(messages)


def _role(message: Any) -> str | None:
    return message.get("role") if isinstance(message, dict) else getattr(message, "role", None)


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    """Length of the common prefix."""
    for i, (x, y) in enumerate(zip(a, b, strict=False)):
        if x != y:
            return i
    return min(len(a), len(b))
