"""A program in a terminal of its own, as a user runs it: keys, colours, a changing size."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import termios
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager


class Terminal:
    """The user's side of a pseudo-terminal.

    Attributes:
        programs: file descriptor of the other side, for a program.
        shown: all that was written to it so far.
    """

    def __init__(self, rows: int, columns: int) -> None:
        self._users, self.programs = pty.openpty()
        self.shown = ""
        self.resize(rows, columns)

    def resize(self, rows: int, columns: int) -> None:
        size = struct.pack("HHHH", rows, columns, 0, 0)
        fcntl.ioctl(self.programs, termios.TIOCSWINSZ, size)

    def press(self, keys: bytes) -> None:
        os.write(self._users, keys)

    def read_until(self, text: str | re.Pattern[str], seconds: float) -> str:
        """What is written from now until ``text`` is in it."""
        pattern = re.compile(re.escape(text)) if isinstance(text, str) else text
        end, start = time.monotonic() + seconds, len(self.shown)
        while not pattern.search(self.shown[start:]):
            left = end - time.monotonic()
            assert left > 0, f"no {text!r} within {seconds} s: {self.shown[start:][-1000:]!r}"
            if select.select([self._users], [], [], left)[0]:
                self.shown += os.read(self._users, 65536).decode(errors="replace")
        return self.shown[start:]

    def close(self) -> None:
        os.close(self._users)
        os.close(self.programs)


@contextmanager
def terminal(rows: int = 24, columns: int = 80) -> Iterator[Terminal]:
    """A terminal without a program."""
    made = Terminal(rows, columns)
    try:
        yield made
    finally:
        made.close()


@contextmanager
def running(
    arguments: Sequence[str], environment: dict[str, str]
) -> Iterator[tuple[Terminal, subprocess.Popen[bytes]]]:
    """A program that has a terminal for its input, its output and its errors."""
    with terminal() as made:
        side = made.programs
        process = subprocess.Popen(
            arguments,
            env={k: v for k, v in environment.items() if k not in ("COLUMNS", "LINES")}
            | {"TERM": "xterm"},
            stdin=side,
            stdout=side,
            stderr=side,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(side, termios.TIOCSCTTY, 0),
        )
        try:
            yield made, process
        finally:
            process.kill()
            process.wait()
