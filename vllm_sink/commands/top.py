"""``vllm-sink top URL``: a live view of a server's ``/metrics``."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from vllm_sink.commands.arguments import LARGEST, SMALLEST, ApiKey, Url
from vllm_sink.commands.key import Key

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from vllm_sink.commands.server import Server


def top(
    url: Url,
    api_key: ApiKey = None,
    interval: Annotated[
        float,
        typer.Option(
            min=SMALLEST, max=LARGEST, metavar="seconds", help="between two scrapes of the server"
        ),
    ] = 2.0,
    once: Annotated[bool, typer.Option("--once", help="print one view and exit")] = False,
) -> int:
    """Watch the streams and the cache of a running server.

    Ctrl-C ends it.
    """
    from vllm_sink.commands.server import Server
    from vllm_sink.commands.terminal import console_of, plain_text

    views = _views(Server(url, Key.find(api_key)), interval)
    if once:
        print(plain_text(next(views)))
    elif (console := console_of(sys.stdout)) is not None:
        _watch(console, views)
    else:
        for view in views:
            print(f"{plain_text(view)}\n{_footer()}", flush=True)
    return 0


def _views(server: Server, interval: float) -> Iterator[RenderableType]:
    """Views of the server, one for each interval."""
    from vllm_sink.commands.top_view import Looks, view

    # A rate needs two scrapes, each with its time.
    before, then = server.metrics(), time.monotonic()
    while True:
        time.sleep(interval)
        now, at = server.metrics(), time.monotonic()
        yield view(server.url, Looks(before, now, at - then))
        before, then = now, at


def _watch(console: Console, views: Iterator[RenderableType]) -> None:
    """Show views in the whole terminal; the last one stays on it."""
    from rich.console import Group
    from rich.live import Live

    latest: RenderableType | None = None
    try:
        # Redrawn between two views as well: the terminal's size may have changed.
        with Live(console=console, screen=True) as live:
            for latest in views:
                live.update(Group(latest, _footer()), refresh=True)
    finally:
        if latest is not None:
            console.print(latest)


def _footer() -> str:
    return f"{time.strftime('%H:%M:%S')}  Ctrl-C ends"
