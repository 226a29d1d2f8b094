"""vLLM's schedulers with streams, given to vLLM as ``scheduler_cls``, a public setting.

Each class before vLLM's adds one thing, and sees what those after it do::

    StreamReporting    statistics of what happens to streams
    Admission          who is scheduled, and when
    StreamScheduling   every request's S and W
    RollingStreams     streams stay within a segment
    Scheduler          vLLM's
"""

from __future__ import annotations

from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.scheduler import Scheduler

from vllm_sink.compat.install import install
from vllm_sink.engine.admission import Admission
from vllm_sink.engine.rollover import RollingStreams
from vllm_sink.engine.stream_scheduling import StreamScheduling
from vllm_sink.engine.stream_statistics import StreamReporting

# vLLM imports this module with its scheduler, before it reads the first request and before any
# encoder of statistics is made.
install("engine core")


class SinkScheduler(StreamReporting, Admission, StreamScheduling, RollingStreams, Scheduler):
    """Synchronous scheduling (vLLM: ``v1/core/sched/scheduler.py``)."""


class SinkAsyncScheduler(
    StreamReporting, Admission, StreamScheduling, RollingStreams, AsyncScheduler
):
    """Scheduling one step ahead (vLLM: ``v1/core/sched/async_scheduler.py``)."""
