"""Shutdown of a server: refuses new requests, lets streams finish, ends the rest with a reason.

vLLM's ``--shutdown-timeout`` lets requests finish for that long and then kills the engine; its API
server then waits forever for clients that wait for it, and meanwhile accepts requests that it
drops. An endless stream never finishes by itself. So shortly before the timeout, what still runs is
ended with an error that says so; its client continues elsewhere, from its history.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any
from weakref import WeakKeyDictionary

#: Messages to clients, in an error of this type.
ENDED = (
    "this server is shutting down and the stream was still running: send the conversation again, "
    "with the same x-session-id, to continue elsewhere"
)
REFUSED = "this server is shutting down: send the request again, another one will take it"
ERROR_TYPE = "ServiceUnavailable"
STATUS = 503

#: Seconds of the grace period that are left for ending responses and stopping the engine.
MARGIN = 5.0


class Drain:
    """The responses of one engine.

    Attributes:
        begun: whether new requests are refused.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._live: set[Live] = set()
        self._deadline = 0.0
        self.begun = False

    def begin(self, seconds: float) -> None:
        """Refuse new requests, and end what still runs after ``seconds``. From any thread."""
        with self._changed:
            if self.begun:
                return
            self.begun, self._deadline = True, time.monotonic() + seconds
            for live in self._live:
                live.expire_at(self._deadline)

    def wait_until_idle(self, seconds: float) -> bool:
        """Block until no response runs, at most ``seconds``. Not on an event loop's thread."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._live, seconds)

    @contextmanager
    def live(self) -> Iterator[Live]:
        """Register a response while it runs; called on its event loop."""
        live = Live()
        with self._changed:
            self._live.add(live)
            if self.begun:
                live.expire_at(self._deadline)
        try:
            yield live
        finally:
            with self._changed:
                self._live.discard(live)
                self._changed.notify_all()


class Live:
    """One response.

    Attributes:
        expired: set when it must end now.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self.expired = asyncio.Event()

    def expire_at(self, deadline: float) -> None:
        """Set ``expired`` at this monotonic time. From any thread."""

        def later() -> None:
            self._loop.call_later(max(0.0, deadline - time.monotonic()), self.expired.set)

        with suppress(RuntimeError):  # its loop is closed: it has ended
            self._loop.call_soon_threadsafe(later)


#: One for each engine in this process; a closed engine does not affect the next.
_DRAINS: WeakKeyDictionary[Any, Drain] = WeakKeyDictionary()


def drain_of(engine: Any) -> Drain:
    """The responses of an engine."""
    return _DRAINS.setdefault(engine, Drain())


def grace(timeout: float) -> float:
    """Seconds that streams have to finish in a grace period of ``timeout`` seconds."""
    return max(0.0, timeout - min(MARGIN, timeout / 3))


def drain_first(shutdown: Callable[..., None], engine: Any, timeout: float | None = None) -> None:
    """``AsyncLLM.shutdown``, which vLLM's server calls on SIGTERM, that drains first."""
    began = time.monotonic()
    if not _on_event_loop():  # there it is the final cleanup, and no response could end
        drain = drain_of(engine)
        drain.begin(grace(timeout or 0.0))
        drain.wait_until_idle((timeout or 0.0) + 1.0)
    if timeout:
        # Zero would mean "abort"; there is nothing left to abort.
        timeout = max(1.0, timeout - (time.monotonic() - began))
    shutdown(timeout)


def _on_event_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True
