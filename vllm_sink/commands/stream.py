"""``vllm-sink stream URL``: follow one endless stream, its text and its progress."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vllm_sink.commands.arguments import ApiKey, Url
from vllm_sink.commands.errors import BrokenStream
from vllm_sink.commands.key import Key
from vllm_sink.requests.options import ENDLESS, SINK_TOKENS

if TYPE_CHECKING:
    from openai.types import Completion

    from vllm_sink.commands.progress import Progress

#: The default prompt.
PROMPT = "It was a dark and stormy night;"


def stream(
    url: Url,
    api_key: ApiKey = None,
    model: Annotated[
        str | None, typer.Option(help="its name on the server (default: the only one)")
    ] = None,
    prompt: Annotated[str, typer.Option(help="what the stream begins with")] = PROMPT,
    max_tokens: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="end after N tokens (default: never)"),
    ] = None,
    sink_tokens: Annotated[
        int | None, typer.Option(metavar="S", help="pin the first S tokens of the prompt")
    ] = None,
    temperature: Annotated[float, typer.Option(help="sampling temperature")] = 0.8,
) -> int:
    """Follow an endless stream of a running server.

    Ctrl-C ends it. Exit status 1 where it ends with an error.
    """
    from vllm_sink.commands.live_text import live_text
    from vllm_sink.commands.progress import Progress
    from vllm_sink.commands.server import Server

    server = Server(url, Key.find(api_key))
    card = server.model(model)
    progress = Progress.at_start(server.metrics(), sink_tokens)
    completion = server.complete(
        model=str(card["id"]),
        prompt=prompt,
        temperature=temperature,
        extra_body=_extra_body(max_tokens, sink_tokens),
    )
    reason, failure = "interrupted", None
    with live_text(sys.stdout, progress.line) as write:
        try:
            reason = _follow(server.events(completion), progress, write)
        except KeyboardInterrupt:
            pass
        except BrokenStream as error:
            reason, failure = "error", error
    print(f"\n{progress.line()}; ended: {reason}", file=sys.stderr)
    if failure is not None:
        print(f"vllm-sink stream: error: {failure}", file=sys.stderr)
    return 0 if failure is None else 1


def _extra_body(max_tokens: int | None, sink_tokens: int | None) -> dict[str, Any]:
    """The stream's length, and fields that vLLM's API has beyond OpenAI's.

    A server without a policy ends an endless stream after vLLM's default of 16 tokens.
    """
    options: dict[str, Any] = {} if max_tokens else {ENDLESS: True}
    if sink_tokens is not None:
        options[SINK_TOKENS] = sink_tokens
    extra: dict[str, Any] = {
        "ignore_eos": True,
        "stream_options": {"include_usage": True, "continuous_usage_stats": True},
        "vllm_xargs": options,
    }
    if max_tokens:
        extra["max_tokens"] = max_tokens
    return extra


def _follow(events: Iterator[Completion], progress: Progress, write: Callable[[str], None]) -> str:
    """Write the stream's text and count its tokens; return why it ended.

    Raises:
        BrokenStream: it ended without a reason.
    """
    reason = None
    for event in events:
        if event.usage is not None:
            progress.tokens = event.usage.total_tokens
            progress.prompt_tokens = event.usage.prompt_tokens
        for choice in event.choices:
            progress.started = progress.started or time.monotonic()
            write(choice.text)
            reason = choice.finish_reason or reason
    if reason is None:
        raise BrokenStream("the connection was closed before the stream's end")
    return reason
