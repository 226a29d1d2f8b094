"""The worker of ``ahead.py``, by itself: vLLM's CPU worker, imported, takes pinned memory away from
every other runner of the process (``vllm/v1/worker/cpu/shm.py``), so only a CPU's engine may.
"""

from __future__ import annotations

from typing import Any

from tests.e2e.ahead import DEVICE
from vllm_sink.worker.cpu import SinkCPUWorker


class AheadWorker(SinkCPUWorker):
    """The same for an engine in a process of its own, to which patches do not reach."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        for (owner, name), stand_in in DEVICE.items():
            setattr(owner, name, stand_in)
        super().__init__(*args, **kwargs)
