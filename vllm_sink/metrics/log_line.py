"""Adds streams, blocks and churn to the line that vLLM logs every few seconds.

vLLM builds the line and logs it in one function (``LoggingStatLogger.log``). A filter on its
logger, which is what Python offers for changing a record, appends to it.
"""

from __future__ import annotations

import logging
import re
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vllm_sink.metrics.messages import StreamStats

#: The module that logs the line, and text that only this line has.
LOGGER = "vllm.v1.metrics.loggers"
MARK = "KV cache usage: %.1f%%"

_ONE_ENGINE = re.compile(r"Engine (\d+): ")


class LogLine(logging.Filter):
    """Remembers each engine's last message, and its churn over the interval."""

    def __init__(self) -> None:
        super().__init__()
        self._last: dict[int, StreamStats] = {}
        self._recycled: dict[int, int] = {}
        self._churn: dict[int, float] = {}
        self._since = time.monotonic()

    def install(self) -> None:
        """Replace the filter of an earlier engine."""
        logger = logging.getLogger(LOGGER)
        for earlier in [f for f in logger.filters if isinstance(f, LogLine)]:
            logger.removeFilter(earlier)
        logger.addFilter(self)

    def record(self, engine: int, stats: StreamStats) -> None:
        """Record an engine's message."""
        self._last[engine] = stats
        self._recycled[engine] = self._recycled.get(engine, 0) + stats.recycled_blocks

    def new_interval(self) -> None:
        """Close the interval: the next line reports its churn."""
        now = time.monotonic()
        seconds = max(now - self._since, 1e-9)
        self._churn = {engine: n / seconds for engine, n in self._recycled.items()}
        self._recycled, self._since = {}, now

    def text(self, engines: list[int]) -> str:
        """The line's text for these engines, summed."""
        stats = [self._last[i] for i in engines]
        return (
            f"Streams: {sum(s.streams for s in stats)} "
            f"({sum(s.past_context for s in stats)} past the context), "
            f"KV blocks: {sum(s.sink_blocks for s in stats)} sink, "
            f"{sum(s.window_blocks for s in stats)} window, "
            f"{sum(s.free_blocks for s in stats)} free, "
            f"Churn: {sum(self._churn.get(i, 0.0) for i in engines):.1f} blocks/s"
        )

    def filter(self, record: logging.LogRecord) -> bool:
        """Append to the one line; let every record through."""
        if isinstance(record.msg, str) and MARK in record.msg and isinstance(record.args, tuple):
            engine = _ONE_ENGINE.match(record.msg)
            engines = [i for i in self._last if engine is None or i == int(engine[1])]
            if engines and "Iteration(" not in record.msg:
                record.msg += ", %s"
                record.args = (*record.args, self.text(engines))
        return True
