"""vLLM's V1 runner one step ahead of its outputs, on a CPU, where vLLM itself never does that.

vLLM turns asynchronous scheduling off on CPUs, because it brings nothing there. Its V1 runner,
scheduler and engine core do not depend on the device once CUDA streams and events are dummies: what
is in flight, and when it arrives, is as on a GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any
from unittest import mock

import torch
from vllm.platforms.cpu import CpuPlatform


class Nothing:
    """A CUDA stream or event of a device that is always idle."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.device = torch.device("cpu")

    def nothing(self, *args: Any, **kwargs: Any) -> None: ...

    record = synchronize = wait_stream = wait = nothing


#: What the runner calls of CUDA when its outputs arrive later.
DEVICE = {
    (torch.cuda, "Stream"): Nothing,
    (torch.cuda, "Event"): Nothing,
    (torch, "Event"): Nothing,
    (torch.cuda, "current_stream"): Nothing,
    (torch.cuda, "stream"): lambda stream: nullcontext(),
}


def _ahead(check: Callable[[Any], None]) -> Callable[[Any], None]:
    def check_and_stay_ahead(vllm_config: Any) -> None:
        check(vllm_config)
        vllm_config.scheduler_config.async_scheduling = True

    return check_and_stay_ahead


@contextmanager
def ahead_by_default() -> Iterator[None]:
    """Configs made in this block schedule a step before the last one's outputs."""
    check = CpuPlatform.check_and_update_config
    patch = staticmethod(_ahead(check))
    with mock.patch.object(CpuPlatform, "check_and_update_config", patch):
        yield


@contextmanager
def one_step_ahead() -> Iterator[None]:
    """The same for engines that are made and run in this block, in this process."""
    patches = [mock.patch.object(*place, stand_in) for place, stand_in in DEVICE.items()]
    with ahead_by_default():
        for patch in patches:
            patch.start()
        try:
            yield
        finally:
            for patch in patches:
                patch.stop()
