"""vLLM's own generator of a streamed chat, fed by hand: it sends everything and keeps nothing."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.entrypoints.openai.chat_completion.serving import OpenAIServingChat
from vllm.outputs import CompletionOutput, RequestOutput

from tests.wrapping import wrapped
from vllm_sink.vllm_fixes.chat_text_leak import stream_without_copy

PLAIN = getattr(
    OpenAIServingChat.chat_completion_stream_generator,
    "__wrapped__",
    OpenAIServingChat.chat_completion_stream_generator,
)
WRAPPED = wrapped(PLAIN, stream_without_copy)
PIECES = ["Once", " upon", "", " a\n", "tïme", "\u2026", " \\"] * 30


async def _results() -> AsyncIterator[RequestOutput]:
    for i, text in enumerate(PIECES):
        reason = "stop" if i == len(PIECES) - 1 else None
        completion = CompletionOutput(0, text, [i], None, None, finish_reason=reason)
        yield RequestOutput("1", None, [1, 2], None, [completion], reason is not None)


class _Chat(OpenAIServingChat):
    """The server's part, without a server."""

    def __init__(self, **settings: Any) -> None:
        self.parser_cls = self.request_logger = self.system_fingerprint = None
        self.enable_force_include_usage = self.enable_log_outputs = self.enable_log_deltas = False
        self._include_reasoning_tokens_details = False
        self.enable_prompt_tokens_details = self.enable_per_request_metrics = False
        vars(self).update(settings)

    def get_chat_request_role(self, request: Any) -> str:
        return "assistant"


def _said(generator: Any, **settings: Any) -> tuple[str, list[str], Any]:
    """What a client receives; what the generator keeps; the usage."""
    request = ChatCompletionRequest(
        messages=[], model="m", stream=True, stream_options={"include_usage": True}
    )
    chat, metadata = _Chat(**settings), SimpleNamespace()

    async def read() -> tuple[str, list[str], Any]:
        events = generator(chat, request, _results(), "1", "m", [], None, metadata)
        text, kept, usage = "", [], None
        async for event in events:
            if event.strip() == "data: [DONE]":
                continue
            body = json.loads(event.removeprefix("data: "))
            for choice in body["choices"]:
                text += choice["delta"].get("content") or ""
            usage = body.get("usage") or usage
            if events.ag_frame is not None:
                kept = list(events.ag_frame.f_locals["previous_texts"])
        return text, kept, usage

    return asyncio.run(read())


def test_a_streamed_chat_is_told_and_not_kept() -> None:
    text, kept, usage = _said(WRAPPED)
    assert text == "".join(PIECES)
    assert kept == [""]
    assert usage["completion_tokens"] == len(PIECES)
    assert usage["prompt_tokens"] == 2


def test_vllm_keeps_it() -> None:
    """When this fails, vLLM no longer keeps the copy, and the hook can be removed."""
    text, kept, _ = _said(PLAIN)
    assert kept == [text] == ["".join(PIECES)]


@pytest.mark.parametrize("delta", [False, True])
def test_the_log_of_outputs_has_the_text(delta: bool) -> None:
    logged: list[str] = []
    logger = SimpleNamespace(log_outputs=lambda **told: logged.append(told["outputs"]))
    settings = {
        "enable_log_outputs": True,
        "enable_log_deltas": delta,
        "request_logger": logger,
    }
    text, _, _ = _said(WRAPPED, **settings)
    assert text == "".join(PIECES)
    assert logged[-1] == text
