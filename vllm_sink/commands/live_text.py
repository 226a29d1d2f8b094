"""Text that comes in pieces, with a status line below it."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from vllm_sink.commands.terminal import console_of

#: Refreshes of the status line per second.
REFRESHES = 10


class _Rows:
    """The content of a terminal: full rows, and below them the part that still changes.

    Rich redraws the changing part at every refresh, at the terminal's current width.

    Args:
        console: the terminal.
        status: the text of the status line.
    """

    def __init__(self, console: Console, status: Callable[[], str]) -> None:
        self._console = console
        self._status = status
        self.unfinished = ""

    def write(self, text: str) -> None:
        """Append text; full rows go above the changing part."""
        # A control character that a model writes would move the cursor.
        text = "".join(c for c in text if c in "\n\t" or unicodedata.category(c) != "Cc")
        rows = Text(self.unfinished + text).wrap(self._console, self._console.width)
        # Before printing, which redraws the changing part.
        self.unfinished = rows.pop().plain if rows else ""
        for row in rows:
            self._console.print(row, soft_wrap=True)

    def __rich__(self) -> Group:
        """The last row of the text, and the status line, as they are now."""
        status = Text(self._status(), style="reverse", no_wrap=True, overflow="crop")
        return Group(Text(self.unfinished), status)


@contextmanager
def live_text(out: TextIO, status: Callable[[], str]) -> Iterator[Callable[[str], None]]:
    """A function that appends text to ``out``.

    Args:
        out: where it goes.
        status: the text of the status line, which is shown only if ``out`` is a terminal.
    """
    console = console_of(out)
    if console is None:

        def write(text: str) -> None:
            out.write(text)
            out.flush()

        yield write
        return
    rows = _Rows(console, status)
    try:
        with Live(
            rows,
            console=console,
            refresh_per_second=REFRESHES,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        ):
            yield rows.write
    finally:
        out.write(rows.unfinished)
        out.flush()
