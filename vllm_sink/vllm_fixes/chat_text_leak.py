"""vLLM keeps no copy of the text of a streamed chat.

``OpenAIServingChat.chat_completion_stream_generator`` appends every piece of an answer to a copy of
the whole (``previous_texts``), a new string each time: after 40 MB of text a token costs 40 MB of
copying. Only a log line of ``--enable-log-outputs`` reads the copy; without that flag the pieces
are strings that add nothing when they are appended.

A parser of tool calls or of reasoning needs the text: with one, pieces are plain strings.

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
    """Results with ``UnkeptText``.

    Not a generator: when a client leaves, vLLM's own must be closed as directly as before.
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
    """``chat_completion_stream_generator`` that keeps no text if nothing reads it."""
    if serving.parser_cls is None and not serving.enable_log_outputs:
        result_generator = _UnkeptResults(result_generator)
    return stream(request, result_generator, *args, **kwargs)
