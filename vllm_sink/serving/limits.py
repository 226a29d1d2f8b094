"""What a tenant may have at once: live streams, and pinned tokens; past it, HTTP 429.

A request is counted from when it comes to the engine's front end (``AsyncLLM.add_request``) until
that lets go of it; one that is refused there is counted no longer. The limits are this process's:
of a server, or of one replica.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any
from weakref import WeakKeyDictionary

from vllm.exceptions import GracefulHTTPError, VLLMValidationError

from vllm_sink.caller import CALLER, Caller
from vllm_sink.engine.core_request import SinkRequest
from vllm_sink.errors import PolicyError
from vllm_sink.metrics.config import MetricsConfig
from vllm_sink.metrics.tenants import MAX_LENGTH, NONE
from vllm_sink.policy import policy_of
from vllm_sink.request_args import SINK_TOKENS
from vllm_sink.serving.access import FLAGS, Access
from vllm_sink.serving.refused import remember_caller

#: Admissions after which tenants that have nothing left are forgotten.
SWEEP = 256


@dataclass
class Admission:
    """A request that is being added to the engine.

    Attributes:
        tenant: whose; None where the server looks for none.
        sinks: tokens that each of its streams pins.
        streams: streams that are yet to begin.
    """

    tenant: str | None
    sinks: int = 0
    streams: int = 0
    _holder: _Holder | None = None

    def begins(self, request_id: str, known: Container[str]) -> None:
        """One of its streams is known to the front end now.

        Args:
            request_id: vLLM's, of the stream.
            known: the requests that the front end knows, kept to ask again.
        """
        if self._holder is not None:
            self.streams -= 1
            self._holder.live[request_id] = (self.sinks, known)


@dataclass
class _Holder:
    """What one tenant has."""

    live: dict[str, tuple[int, Container[str]]] = field(default_factory=dict)
    adding: list[Admission] = field(default_factory=list)

    def count(self) -> tuple[int, int]:
        """Streams and pinned tokens."""
        self.live = {r: (sinks, known) for r, (sinks, known) in self.live.items() if r in known}
        sinks = [sinks for sinks, _ in self.live.values()]
        for admission in self.adding:
            sinks += [admission.sinks] * admission.streams
        return len(sinks), sum(sinks)


class TenantLimits:
    """Counts the streams of each tenant.

    Args:
        access: the limits.
    """

    def __init__(self, access: Access) -> None:
        self.access = access
        self._tenants: dict[str, _Holder] = {}
        self._admissions = 0

    @contextmanager
    def admit(self, tenant: str, streams: int, sinks: int) -> Iterator[Admission]:
        """Count a request while it is added to the engine; its streams count on by themselves.

        Raises:
            GracefulHTTPError: 429, naming the tenant, the limit and what there is already.
        """
        tenant = (tenant or NONE)[:MAX_LENGTH]
        if not self.access.limited:
            yield Admission(tenant)
            return
        self._sweep()
        holder = self._tenants.setdefault(tenant, _Holder())
        self._require(holder, tenant, streams, sinks)
        admission = Admission(tenant, sinks, streams, holder)
        holder.adding.append(admission)
        try:
            yield admission
        finally:
            holder.adding.remove(admission)

    def _require(self, holder: _Holder, tenant: str, streams: int, sinks: int) -> None:
        have, pinned = holder.count()
        for name, limit, already, more, what in (
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
                    f"{limit} ({FLAGS[name]}). Try again when one of its streams has ended",
                    HTTPStatus.TOO_MANY_REQUESTS,
                )

    def _sweep(self) -> None:
        self._admissions += 1
        if self._admissions % SWEEP == 0:
            self._tenants = {
                name: holder
                for name, holder in self._tenants.items()
                if holder.adding or holder.count()[0]
            }


# -- the engine's front, wrapped ------------------------------------------------------------------

#: The request that this task is adding.
_ADMISSION: ContextVar[Admission] = ContextVar("vllm_sink_admission")

#: Of each engine in this process.
_LIMITS: WeakKeyDictionary[Any, TenantLimits] = WeakKeyDictionary()


def limits_of(engine: Any) -> TenantLimits:
    """The limits of an engine, which its own configuration names."""
    if engine not in _LIMITS:
        _LIMITS[engine] = TenantLimits(Access.from_config(engine.vllm_config.additional_config))
    return _LIMITS[engine]


def limited(add_request: Callable[..., Any]) -> Callable[..., Any]:
    """``AsyncLLM.add_request`` within the limits of the caller's tenant."""

    async def add(self: Any, request_id: str, prompt: Any, params: Any, *a: Any, **kw: Any) -> Any:
        kv_policy = policy_of(self.vllm_config)
        config = MetricsConfig.from_config(self.vllm_config.additional_config)
        caller = CALLER.get(None)
        if kv_policy is None or not config.on or caller is None:
            return await add_request(self, request_id, prompt, params, *a, **kw)
        tenant = tenant_name(config, caller)
        streams = getattr(params, "n", 1)
        sinks = _sinks(params, caller, kv_policy.sink_tokens)
        with limits_of(self).admit(tenant, streams, sinks) as admission:
            token = _ADMISSION.set(admission)
            try:
                return await add_request(self, request_id, prompt, params, *a, **kw)
            finally:
                _ADMISSION.reset(token)

    return add


def tenant_name(config: MetricsConfig, caller: Caller) -> str:
    """The tenant's name; empty if the request has none.

    Raises:
        VLLMValidationError: the header that names it was given twice, or the name is no text.
    """
    try:
        if config.header is not None:
            return caller.header(config.header) or ""
        name = caller.user or ""
        if not name.isprintable():  # half a surrogate pair cannot cross to the engine core
            raise PolicyError("user", ascii(name), "printable text")
        return name
    except PolicyError as error:
        raise VLLMValidationError(str(error), parameter=error.field) from None


def _sinks(params: Any, caller: Caller, default: int) -> int:
    """Tokens that a stream of this request pins; what is no number is refused a little later."""
    extra = getattr(params, "extra_args", None) or {}
    asked = caller.options.get(SINK_TOKENS, extra.get(SINK_TOKENS, caller.system_tokens))
    if isinstance(asked, str):
        asked = caller.system_tokens
    return asked if isinstance(asked, int) and asked >= 0 else default


def beginning(add_request: Callable[..., None]) -> Callable[..., None]:
    """``OutputProcessor.add_request``, where a stream becomes known: it is told its tenant."""

    def add(self: Any, request: Any, *args: Any, **kwargs: Any) -> None:
        admission = _ADMISSION.get(None)
        if admission is not None and isinstance(request, SinkRequest):
            request.tenant = admission.tenant
        add_request(self, request, *args, **kwargs)
        state = self.request_states.get(request.request_id)
        if state is not None:
            remember_caller(state.queue)
        if admission is not None:
            admission.begins(request.request_id, self.request_states)

    return add
