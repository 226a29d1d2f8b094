"""The progress of a stream, in one line."""

from __future__ import annotations

import time
from dataclasses import dataclass

from vllm_sink import policy
from vllm_sink.commands.scrape import Metrics


@dataclass
class Progress:
    """The progress of a stream.

    Attributes:
        native: positions that the model has learned.
        sinks: ``S`` of the stream.
        window: ``W``.
        block_size: tokens in a block.
        tokens: prompt and output so far.
        prompt_tokens: of these, the prompt.
        started: when the first token came, by the monotonic clock.
    """

    native: int
    sinks: int
    window: int
    block_size: int
    tokens: int = 0
    prompt_tokens: int = 0
    started: float = 0.0

    @classmethod
    def at_start(cls, metrics: Metrics, sinks: int | None) -> Progress:
        info = metrics.info()
        return cls(
            native=int(info["native_context"]),
            sinks=int(info["sink_tokens"]) if sinks is None else sinks,
            window=int(info["window_tokens"]),
            block_size=int(info["block_size"]),
        )

    @property
    def blocks(self) -> int:
        """KV blocks that the stream holds, by the policy's arithmetic."""
        last = max(0, self.tokens - 1)
        rolling = policy.window_block(last, self.window, self.block_size)
        pinned = policy.sink_blocks(self.sinks, self.block_size)
        written = policy.cdiv(self.tokens, self.block_size)
        return written - max(0, rolling - pinned)

    def line(self) -> str:
        """The status line."""
        seconds = time.monotonic() - self.started if self.started else 0.0
        generated = max(0, self.tokens - self.prompt_tokens)
        rate = (generated - 1) / seconds if generated > 1 and seconds > 0 else 0.0
        return (
            f"{self.tokens:,} tokens | {self.tokens / self.native:.2f} x the native context of "
            f"{self.native:,} | {rate:.1f} tokens/s | {self.blocks} KV blocks"
        )
