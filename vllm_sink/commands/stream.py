"""``vllm-sink stream URL``: follow one endless stream, its text and how far it is."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TextIO

from vllm_sink import policy
from vllm_sink.commands.server import Metrics, Server, ServerError

#: For ever; a server that bounds a stream's length says so, and is asked for all that it allows.
ENDLESS = 10**9

#: Something to begin with where the user has nothing.
PROMPT = "It was a dark and stormy night;"


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("url", metavar="URL", help="the server, such as http://localhost:8000")
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
    """Follow the stream until it ends or is interrupted."""
    server = Server(args.url)
    card = server.model(args.model)
    progress = Progress.at_start(server.metrics(), args.sink_tokens)
    body: dict[str, Any] = {
        "model": card["id"],
        "prompt": args.prompt,
        "max_tokens": args.max_tokens or ENDLESS,
        "temperature": args.temperature,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True, "continuous_usage_stats": True},
    }
    if args.sink_tokens is not None:
        body["vllm_xargs"] = {"sink_tokens": args.sink_tokens}
    reason = "interrupted"
    with _status_line(sys.stdout) as show:
        try:
            for event in _events(server, body, card.get("max_model_len")):
                reason = _take(event, progress) or reason
                show(progress.line())
        except KeyboardInterrupt:
            pass
    print(f"\n{progress.line()}; ended: {reason}", file=sys.stderr)
    return 0


def _open(server: Server, body: dict[str, Any], most: int | None) -> Any:
    """The server's answer; where it refuses an endless one, the longest that it allows."""
    try:
        return server.open("/v1/completions", body)
    except ServerError as error:
        if body["max_tokens"] != ENDLESS or "max_tokens" not in str(error) or most is None:
            raise
        return server.open("/v1/completions", {**body, "max_tokens": most})


def _events(server: Server, body: dict[str, Any], most: int | None) -> Iterator[dict[str, Any]]:
    """The server's events.

    Raises:
        ServerError: it refuses, reports an error in the stream, or goes away.
    """
    with _open(server, body, most) as answer:
        try:
            for raw in answer:
                text = raw.decode().strip().removeprefix("data: ")
                if not text or text == "[DONE]":
                    continue
                event: dict[str, Any] = json.loads(text)
                if "error" in event:
                    raise ServerError(f"{server.url}: {event['error'].get('message', event)}")
                yield event
        except OSError as error:
            raise ServerError(f"{server.url} went away: {error}") from None


def _take(event: dict[str, Any], progress: Progress) -> str | None:
    """Print an event's text and count its tokens; why the stream ended, if it did."""
    usage = event.get("usage") or {}
    progress.tokens = usage.get("total_tokens", progress.tokens)
    progress.prompt_tokens = usage.get("prompt_tokens", progress.prompt_tokens)
    reason = None
    for choice in event.get("choices", ()):
        progress.started = progress.started or time.monotonic()
        sys.stdout.write(choice["text"])
        sys.stdout.flush()
        reason = choice.get("finish_reason") or reason
    return reason


@contextmanager
def _status_line(out: TextIO) -> Iterator[Any]:
    """Keep the terminal's last line for the status; without a terminal show none."""
    if not out.isatty():
        yield lambda text: None
        return

    def show(text: str) -> None:
        columns, rows = shutil.get_terminal_size()
        # Save the cursor, write in the last row, come back.
        out.write(f"\x1b7\x1b[{rows};1H\x1b[7m{text[:columns]:<{columns}}\x1b[0m\x1b8")
        out.flush()

    rows = shutil.get_terminal_size().lines
    # Text scrolls in all rows but the last.
    out.write(f"\x1b[2J\x1b[1;{rows - 1}r\x1b[1;1H")
    try:
        yield show
    finally:
        out.write(f"\x1b[r\x1b[{rows};1H\x1b[2K")
        out.flush()
