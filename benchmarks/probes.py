"""What a working server can be asked at any moment: a metric of its own, and its CPU time.

CPU time is what a step costs on a machine that is shared with others; time on the clock is not.
"""

from __future__ import annotations

import os
import re
from contextlib import suppress
from pathlib import Path

from benchmarks.served import Served, _family, _name

_TICKS = os.sysconf("SC_CLK_TCK")


def metric(served: Served, name: str) -> float:
    """The sum of a metric's samples; zero if there is none yet."""
    with served._open("/metrics") as answer:
        text = answer.read().decode()
    values = re.findall(rf"^{re.escape(name)}(?:\{{.*\}})? (\S+)$", text, re.MULTILINE)
    return sum(map(float, values))


def cpu_seconds(served: Served) -> dict[str, float]:
    """CPU time of each process until now, by name."""
    found: dict[str, float] = {}
    for pid in _family(served.process.pid):
        with suppress(OSError):  # it may just have ended
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            found[_name(pid, served.process.pid)] = (int(fields[11]) + int(fields[12])) / _TICKS
    return found
