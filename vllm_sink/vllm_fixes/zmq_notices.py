"""vLLM's queues between its processes, where the reader never idles.

A reader of vLLM's ``MessageQueue`` (``distributed/device_communicators/shm_broadcast.py``) that has
had a message within a second looks at shared memory alone. The socket that would wake it is left
unread, and for every message ZeroMQ keeps 41 bytes of notices in the reader's process until it is
read: with streams that do not end, without bound. So the socket is read regularly.

Upstream: the notices came with vllm-project/vllm#28053; vllm-project/vllm#52814 makes the busy
window a setting. Can go when ``SpinCondition`` reads its socket while it is busy.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import zmq

from vllm_sink.compat.attached import Attached

#: Messages between two reads of the socket: some seconds of streaming.
EVERY = 1024

#: On vLLM's ``SpinCondition``: messages since it was made.
_MESSAGES = Attached("sink_messages", 0)


def read_notices(record_read: Callable[..., None], condition: Any) -> None:
    """``SpinCondition.record_read``, which the reader's thread calls after every message."""
    record_read()
    messages = _MESSAGES.get(condition) + 1
    _MESSAGES.set(condition, messages)
    if messages % EVERY == 0:
        # To report its events, a socket processes what its I/O thread has sent it. The message
        # itself stays for its reader.
        condition.local_notify_socket.getsockopt(zmq.EVENTS)
