"""What a tenant may have at once: live streams, and pinned tokens; past it, HTTP 429.

A request is counted from when it has been rendered, before its answer begins, until the engine's
front end lets go of it. The limits are this process's: of a server, or of one replica.

::

    render ── admit: count, or refuse ── pending[ticket] ──┐
    OutputProcessor.add_request ───────────────────────────┴─> live[request], while vLLM knows it
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Awaitable, Callable, Container
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from vllm.exceptions import GracefulHTTPError

from vllm_sink.metrics.tenants import MAX_LENGTH, NONE
from vllm_sink.request_args import SINK_TOKENS, TENANT, TICKET
from vllm_sink.serving.access import FLAGS, Access

#: Seconds between the end of a handler and that of a request which never became a stream. A
#: streamed answer's handler ends just before its streams begin.
PATIENCE = 1.0


@dataclass
class _Pending:
    """A request that was admitted and has not all of its streams yet."""

    tenant: str
    sinks: int
    streams: int


class TenantLimits:
    """Counts the streams of each tenant.

    Args:
        access: the limits.
        default_sinks: ``S`` of a request that names none.
    """

    def __init__(self, access: Access, default_sinks: int) -> None:
        self.access = access
        self.default_sinks = default_sinks
        self._pending: dict[str, _Pending] = {}
        self._live: dict[str, tuple[str, int]] = {}
        self._known: Container[str] = self._live

    def admit(self, tenant: str, streams: int, sinks: int) -> str:
        """Count a request that is about to begin; its ticket.

        Raises:
            GracefulHTTPError: 429, naming the tenant, the limit and what there is already.
        """
        tenant = (tenant or NONE)[:MAX_LENGTH]
        have, pinned = self._count(tenant)
        for field, limit, already, more, what in (
            ("max_streams", self.access.max_streams, have, streams, "live streams"),
            (
                "max_pinned_tokens",
                self.access.max_pinned_tokens,
                pinned,
                streams * sinks,
                "pinned tokens",
            ),
        ):
            if limit is not None and already + more > limit:
                raise GracefulHTTPError(
                    f"tenant {tenant!r} has {already} {what} and asks for {more} more; allowed: "
                    f"{limit} ({FLAGS[field]}). Try again when one of its streams has ended",
                    HTTPStatus.TOO_MANY_REQUESTS,
                )
        ticket = uuid.uuid4().hex
        self._pending[ticket] = _Pending(tenant, sinks, streams)
        return ticket

    def begins(self, request_id: str, ticket: object, known: Container[str]) -> None:
        """One of a request's streams is known to the front end now.

        Args:
            request_id: vLLM's, of the stream.
            ticket: the request's, if it has one.
            known: the requests that the front end knows, kept to ask again.
        """
        self._known = known
        pending = self._pending.get(str(ticket))
        if pending is None:
            return
        self._live[request_id] = (pending.tenant, pending.sinks)
        pending.streams -= 1
        if not pending.streams:
            self.forget(str(ticket))

    def forget(self, ticket: str) -> None:
        """What did not begin until now never will."""
        self._pending.pop(ticket, None)

    def _count(self, tenant: str) -> tuple[int, int]:
        """Streams and pinned tokens of a tenant."""
        self._live = {r: stream for r, stream in self._live.items() if r in self._known}
        sinks = [s for name, s in self._live.values() if name == tenant]
        for pending in self._pending.values():
            if pending.tenant == tenant:
                sinks += [pending.sinks] * pending.streams
        return len(sinks), sum(sinks)


def with_limits(
    limits: TenantLimits,
) -> Callable[[Callable[..., Awaitable[Any]]], Callable[..., Awaitable[Any]]]:
    """A wrapper of ``render_*`` that admits a request, once its tokens and its tenant are known."""

    def wrapper(render: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        async def rendered(self: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
            result = await render(self, request, *args, **kwargs)
            extra = getattr(request, "vllm_xargs", None)
            inputs = _inputs(result)
            if not extra or TENANT not in extra or inputs is None:
                return result
            sinks = extra.get(SINK_TOKENS)
            sinks = sinks if isinstance(sinks, int) and sinks >= 0 else limits.default_sinks
            streams = len(inputs) * (getattr(request, "n", None) or 1)
            ticket = limits.admit(str(extra[TENANT]), streams, sinks)
            request.vllm_xargs = {**extra, TICKET: ticket}
            _forget_after(asyncio.current_task(), limits, ticket)
            return result

        return rendered

    return wrapper


def _inputs(result: Any) -> list[Any] | None:
    """The prompts of a rendered request; None where it was refused."""
    if isinstance(result, list):
        return result
    if hasattr(result, "engine_input"):  # of the responses API
        return [result.engine_input]
    return result[1] if isinstance(result, tuple) else None


def _forget_after(task: asyncio.Task[Any] | None, limits: TenantLimits, ticket: str) -> None:
    assert task is not None
    loop = task.get_loop()
    task.add_done_callback(lambda _: loop.call_later(PATIENCE, limits.forget, ticket))


def with_begins(
    limits: TenantLimits,
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A wrapper of ``OutputProcessor.add_request``: where a stream becomes known."""

    def wrapper(add_request: Callable[..., None]) -> Callable[..., None]:
        def added(self: Any, request: Any, *args: Any, **kwargs: Any) -> None:
            add_request(self, request, *args, **kwargs)
            extra = getattr(request.sampling_params, "extra_args", None) or {}
            limits.begins(request.request_id, extra.get(TICKET), self.request_states)

        return added

    return wrapper


def install(access: Access, default_sinks: int) -> None:
    """Limit tenants in this process, from now on. After the tenants' names are found."""
    from vllm.renderers.online_renderer import OnlineRenderer
    from vllm.v1.engine.output_processor import OutputProcessor

    from vllm_sink import compat

    limits = TenantLimits(access, default_sinks)
    for name in compat.request_renderers():
        compat.wrap(OnlineRenderer, name, with_limits(limits))
    compat.wrap(OutputProcessor, "add_request", with_begins(limits))
