"""vLLM's queues between its processes, where the reader never idles.

A reader of vLLM's ``MessageQueue`` (``distributed/device_communicators/shm_broadcast.py``) that has
had a message within a second looks at shared memory alone. The socket that would wake it is left
unread, and for every message ZeroMQ keeps 41 bytes of notices in the reader's process until
somebody looks: with streams that do not end, for ever. So the socket is looked at now and then.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import zmq

from vllm_sink import compat

#: Messages between two looks: some seconds of streaming.
EVERY = 1024


def read_notices() -> None:
    """From now on, in all queues of this process."""
    from vllm.distributed.device_communicators.shm_broadcast import SpinCondition

    compat.wrap(SpinCondition, "record_read", with_notices_read)


def with_notices_read(record_read: Callable[..., None]) -> Callable[..., None]:
    """``SpinCondition.record_read``, which the reader's thread calls after every message."""

    def record(self: Any) -> None:
        record_read(self)
        self.sink_reads = reads = getattr(self, "sink_reads", 0) + 1
        if reads % EVERY == 0:
            # Asked for its events, a socket works off what its I/O thread has told it. The message
            # itself stays for whoever waits.
            self.local_notify_socket.getsockopt(zmq.EVENTS)

    return record
