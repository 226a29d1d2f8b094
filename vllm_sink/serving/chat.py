"""``"sink_tokens": "system"``: pin the leading system message as the chat template renders it.

Wraps ``OnlineRenderer.render_chat`` (``vllm/renderers/online_renderer.py``), where a request's
messages, its template and its tokens meet; later hooks see the tokens alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from vllm.exceptions import VLLMValidationError
from vllm.logger import init_logger

from vllm_sink.request_args import SINK_TOKENS, SYSTEM

logger = init_logger("vllm.sink")

#: Roles that open a conversation with instructions.
_SYSTEM_ROLES = ("system", "developer")

#: Two user messages that share no first token: what their renderings share is the system message.
_PROBES = ("a", "1")


def with_system_sinks(render_chat: Callable[..., Any]) -> Callable[..., Any]:
    """``render_chat`` that turns ``"system"`` into the number of tokens it stands for."""

    async def render(self: Any, request: Any, **kwargs: Any) -> Any:
        wanted = (getattr(request, "vllm_xargs", None) or {}).get(SINK_TOKENS)
        result = await render_chat(self, request, **kwargs)
        if wanted != SYSTEM or not isinstance(result, tuple):
            return result
        leading = 0
        for message in request.messages:
            if _role(message) not in _SYSTEM_ROLES:
                break
            leading += 1
        if not leading:
            raise VLLMValidationError(
                f"{SINK_TOKENS}: {SYSTEM!r} is not allowed without a leading system message; "
                "allowed: a number of tokens, or a conversation that begins with a system message",
                parameter=SINK_TOKENS,
                value=SYSTEM,
            )
        prompt = _tokens(result)
        shared = await _render_shared(self, render_chat, request, leading)
        request.vllm_xargs = {**request.vllm_xargs, SINK_TOKENS: _common(prompt, shared)}
        return result

    return render


async def _render_shared(
    renderer: Any, render_chat: Callable[..., Any], request: Any, leading: int
) -> Sequence[int]:
    """The tokens of the system message alone, or of what any user message would follow."""
    system = request.messages[:leading]
    try:
        alone = await render_chat(renderer, _copy(request, system))
        if isinstance(alone, tuple):
            return _tokens(alone)
    except Exception as error:
        # A template raises whatever it likes, Jinja's errors included.
        logger.debug("The chat template does not render a system message alone: %s", error)
    # Some templates want a user turn (Mistral, Gemma): what two different ones have in common.
    rendered = [
        _tokens(
            await render_chat(
                renderer, _copy(request, [*system, {"role": "user", "content": probe}])
            )
        )
        for probe in _PROBES
    ]
    return rendered[0][: _common(*rendered)]


def _copy(request: Any, messages: list[Any]) -> Any:
    return request.model_copy(
        update={
            "messages": messages,
            "add_generation_prompt": False,
            "continue_final_message": False,
            "vllm_xargs": None,
        }
    )


def _role(message: Any) -> str | None:
    return message.get("role") if isinstance(message, dict) else getattr(message, "role", None)


def _tokens(result: Any) -> Sequence[int]:
    _, engine_inputs = result
    tokens: Sequence[int] = engine_inputs[0]["prompt_token_ids"]
    return tokens


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    """Length of the common prefix."""
    for i, (x, y) in enumerate(zip(a, b, strict=False)):
        if x != y:
            return i
    return min(len(a), len(b))
