"""``vllm-sink stream URL``: follow one endless stream, its text and how far it is."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, TextIO

from vllm_sink import policy
from vllm_sink.commands import server
from vllm_sink.commands.server import BrokenStream, Metrics, Server

if TYPE_CHECKING:
    from openai import Stream
    from openai.types import Completion

#: Something to begin with where the user has nothing.
PROMPT = "It was a dark and stormy night;"


def add(parser: argparse.ArgumentParser) -> None:
    server.add(parser)
    parser.add_argument("--model", help="as the server calls it (default: its only one)")
    parser.add_argument("--prompt", default=PROMPT, help=f"(default: {PROMPT!r})")
    parser.add_argument(
        "--max-tokens", type=count, metavar="N", help="end after so many (default: never)"
    )
    parser.add_argument("--sink-tokens", type=int, metavar="S", help="pin so many of the prompt")
    parser.add_argument("--temperature", type=float, default=0.8, help="(default: 0.8)")


def count(text: str) -> int:
    """A positive number of tokens."""
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not allowed; allowed: an integer of at least 1"
        )
    return value


@dataclass
class Progress:
    """How far a stream is.

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
        every = policy.cdiv(self.tokens, self.block_size)
        return every - max(0, rolling - pinned)

    def line(self) -> str:
        """The status line."""
        seconds = time.monotonic() - self.started if self.started else 0.0
        made = max(0, self.tokens - self.prompt_tokens)
        rate = (made - 1) / seconds if made > 1 and seconds > 0 else 0.0
        return (
            f"{self.tokens:,} tokens | {self.tokens / self.native:.2f} x the native context of "
            f"{self.native:,} | {rate:.1f} tokens/s | {self.blocks} KV blocks"
        )


def run(args: argparse.Namespace) -> int:
    """Follow the stream until it ends or is interrupted; 1 where it ends with an error."""
    asked = Server.of(args)
    card = asked.model(args.model)
    progress = Progress.at_start(asked.metrics(), args.sink_tokens)
    stream = _begin(asked, args, str(card["id"]))
    reason, failure = "interrupted", None
    with _status_line(sys.stdout) as show:
        try:
            reason = _follow(asked.events(stream), progress, show)
        except KeyboardInterrupt:
            pass
        except BrokenStream as error:
            reason, failure = "error", error
    print(f"\n{progress.line()}; ended: {reason}", file=sys.stderr)
    if failure is not None:
        print(f"vllm-sink stream: error: {failure}", file=sys.stderr)
    return 0 if failure is None else 1


def _begin(asked: Server, args: argparse.Namespace, model: str) -> Stream[Completion]:
    """A stream; a server without a policy ends it after vLLM's default of 16 tokens."""
    options: dict[str, object] = {} if args.max_tokens else {"endless": True}
    if args.sink_tokens is not None:
        options["sink_tokens"] = args.sink_tokens
    extra: dict[str, object] = {
        "ignore_eos": True,
        "stream_options": {"include_usage": True, "continuous_usage_stats": True},
        "vllm_xargs": options,
    }
    if args.max_tokens:
        extra["max_tokens"] = args.max_tokens
    with asked.errors("/v1/completions"):
        return asked.client.completions.create(
            model=model,
            prompt=args.prompt,
            temperature=args.temperature,
            stream=True,
            extra_body=extra,
        )


def _follow(events: Iterator[Completion], progress: Progress, show: Callable[[str], None]) -> str:
    """Print the stream's text and keep the status; why it ended.

    Raises:
        BrokenStream: it does not say why.
    """
    reason = None
    for event in events:
        reason = _take(event, progress) or reason
        show(progress.line())
    if reason is None:
        raise BrokenStream("the connection was closed before the stream's end")
    return reason


def _take(event: Completion, progress: Progress) -> str | None:
    """Print an event's text and count its tokens; why the stream ended, if it did."""
    if event.usage is not None:
        progress.tokens = event.usage.total_tokens
        progress.prompt_tokens = event.usage.prompt_tokens
    reason = None
    for choice in event.choices:
        progress.started = progress.started or time.monotonic()
        sys.stdout.write(choice.text)
        sys.stdout.flush()
        reason = choice.finish_reason or reason
    return reason


@contextmanager
def _status_line(out: TextIO) -> Iterator[Callable[[str], None]]:
    """Keep the terminal's last row for the status; without a terminal show none."""
    if not out.isatty():
        yield lambda text: None
        return
    size = _size(out)
    # Text scrolls in all rows but the last.
    out.write(f"\x1b[2J\x1b[1;{size.lines - 1}r\x1b[1;1H")

    def show(text: str) -> None:
        nonlocal size
        now = _size(out)
        if now != size:
            size = now
            # All rows scroll and the cursor is where it was; what is below it, an old status,
            # goes; one row down and up again keeps it off the new last row.
            out.write("\x1b7\x1b[r\x1b8\x1b[J\x1bD\x1b[A")
            out.write(f"\x1b7\x1b[1;{size.lines - 1}r\x1b8")
        # Save the cursor, write in the last row, come back.
        line = f"{text[: size.columns]:<{size.columns}}"
        out.write(f"\x1b7\x1b[{size.lines};1H\x1b[7m{line}\x1b[0m\x1b8")
        out.flush()

    try:
        yield show
    finally:
        out.write(f"\x1b[r\x1b[{size.lines};1H\x1b[2K")
        out.flush()


def _size(out: TextIO) -> os.terminal_size:
    """Columns and rows; a terminal that nobody has told its size says 0."""
    columns, rows = os.get_terminal_size(out.fileno())
    return os.terminal_size((columns or 80, rows or 24))
