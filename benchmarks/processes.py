"""A process and all its descendants, and signals to all of them.

Only the standard library: the peers' drivers use it in environments of their own.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path


def family(pid: int) -> Iterator[int]:
    """A process and all its descendants."""
    yield pid
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):  # it may just have ended
            for child in task.read_text().split():
                yield from family(int(child))


def signal_family(pid: int, number: signal.Signals) -> None:
    """The same signal to all of them."""
    for member in family(pid):
        with suppress(ProcessLookupError):  # it may just have ended
            os.kill(member, number)
