"""A streamed chat is not kept by what writes it.

``OpenAIServingChat.chat_completion_stream_generator`` appends every piece of an answer to a copy of
the whole (``previous_texts``), a new string each time: a token of a stream that has said 40 MB
costs 40 MB of copying. What it has it for is one line of the log of ``--enable-log-outputs``; where
that is off nothing reads it, and the pieces are given as strings that leave no trace in a sum.

A parser of tool calls or of reasoning needs the text: with one, pieces are plain.

Upstream: none known. Can go when the generator keeps no text where nothing reads it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any


class UnkeptText(str):
    """Text that is sent once: ``before + text`` is ``before``."""

    __slots__ = ()

    def __radd__(self, before: str) -> str:
        return before


class _UnkeptResults:
    """Results whose texts leave no trace.

    No generator: a client that leaves must reach vLLM's own as directly as before.
    """

    def __init__(self, results: AsyncIterator[Any]) -> None:
        self._results = results

    def __aiter__(self) -> _UnkeptResults:
        return self

    async def __anext__(self) -> Any:
        result = await anext(self._results)
        for output in result.outputs:
            output.text = UnkeptText(output.text)
        return result


def stream_without_copy(
    stream: Callable[..., Any],
    serving: Any,
    request: Any,
    result_generator: AsyncIterator[Any],
    *args: Any,
    **kwargs: Any,
) -> Any:
    """``chat_completion_stream_generator`` that holds no text, where none is wanted."""
    if serving.parser_cls is None and not serving.enable_log_outputs:
        result_generator = _UnkeptResults(result_generator)
    return stream(request, result_generator, *args, **kwargs)
