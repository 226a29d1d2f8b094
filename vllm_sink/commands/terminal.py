"""Output: rich's console on a terminal, plain text elsewhere."""

from __future__ import annotations

import io
from typing import TextIO

from rich.console import Console, RenderableType

#: Columns of plain text: more than any line has, so that none is broken.
PLAIN_COLUMNS = 10_000


def console_of(out: TextIO) -> Console | None:
    """The terminal behind ``out``; None if it is not one, or cannot move its cursor.

    Rich itself would take a pipe for a terminal if ``FORCE_COLOR`` is set.
    """
    if not out.isatty():
        return None
    console = Console(file=out, highlight=False, markup=False, emoji=False)
    return None if console.is_dumb_terminal else console


def plain_text(view: RenderableType) -> str:
    """A view without styles, and without a newline at its end."""
    out = io.StringIO()
    console = Console(file=out, width=PLAIN_COLUMNS, force_terminal=False, color_system=None)
    console.print(view)
    return out.getvalue().rstrip("\n")
