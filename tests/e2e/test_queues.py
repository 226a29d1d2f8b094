"""A reader of vLLM's queues that never idles keeps no wake-up notices."""

from __future__ import annotations

import time
from typing import Any

import zmq
from vllm.distributed.device_communicators.shm_broadcast import SpinCondition
from vllm.utils.network_utils import get_open_zmq_ipc_path

from tests.wrapping import wrapped
from vllm_sink.metrics.collector import resident_bytes
from vllm_sink.vllm_fixes import zmq_notices

MESSAGES = 10_000


def grown(record_read: Any, pace: float) -> float:
    """Bytes per message in a reader that gets them one by one and is never idle.

    What comes too fast is dropped by the socket, and nothing is kept of that: ``pace`` seconds lie
    between two messages.
    """
    context = zmq.Context()
    address = get_open_zmq_ipc_path()
    writer = SpinCondition(False, context, address)
    reader = SpinCondition(True, context, address)
    time.sleep(0.5)  # to connect
    try:

        def tell(messages: int) -> None:
            for _ in range(messages):
                writer.notify()
                record_read(reader)
                time.sleep(pace)

        tell(2 * zmq_notices.EVERY)
        before = resident_bytes()
        tell(MESSAGES)
        return (resident_bytes() - before) / MESSAGES
    finally:
        sockets = (writer.local_notify_socket, reader.local_notify_socket)
        for socket in (*sockets, reader.read_cancel_socket, reader.write_cancel_socket):
            socket.close(linger=0)
        context.term()


def test_notices_are_read_now_and_then() -> None:
    plain = getattr(SpinCondition.record_read, "__wrapped__", SpinCondition.record_read)
    # A busy machine needs the slower one.
    for pace in (5e-4, 2e-3):
        if (before := grown(plain, pace)) > 4:
            break
    assert before > 4, "vLLM reads them itself: the hook is not needed any more"
    assert grown(wrapped(plain, zmq_notices.read_notices), pace) < before / 3
