"""What each tenant, and all together, have at once; past a limit, HTTP 429.

::

    AsyncLLM.add_request ── entry(): its tenant
        └─ checks.check ── reserve(): all that it asks for, or 429
               └─ OutputProcessor.add_request ── begins(): counted for as long as vLLM knows it
        what was reserved and did not begin is given back in any case

A request that is refused, here or anywhere, is not counted. The counts are this process's: of a
server, or of one replica.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, fields, replace
from http import HTTPStatus
from typing import Any
from weakref import WeakKeyDictionary

from vllm.exceptions import GracefulHTTPError, VLLMValidationError

from vllm_sink.config.tenancy import FLAGS, Limits, TenancyConfig
from vllm_sink.tenancy.keys import Tenant

#: Retry-After in seconds, where no better value is known.
AFTER = 5

#: Minimum of entries from which those that ended are dropped.
SWEEP = 256

_CALLED = {
    "max_streams": "live streams",
    "max_pinned_tokens": "pinned tokens",
    "max_queued_requests": "queued requests",
}

_TOTAL_FLAGS = {name: FLAGS.get(f"total_{name}", "") for name in vars(Limits())}


@dataclass(frozen=True)
class Demand:
    """What one request, or several together, have or ask for.

    Attributes:
        max_streams, max_pinned_tokens, max_queued_requests: as in ``Limits``.
    """

    max_streams: int = 0
    max_pinned_tokens: int = 0
    max_queued_requests: int = 0

    def __add__(self, other: Demand) -> Demand:
        return Demand(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    def times(self, n: int) -> Demand:
        """Of ``n`` such requests."""
        return Demand(*(n * getattr(self, f.name) for f in fields(self)))


class Bucket:
    """Tokens that may be spent: those of a minute at once, refilled at the same rate.

    Generated tokens are spent after the fact, so it can be overdrawn; then the next request waits
    until it is not.
    """

    def __init__(self) -> None:
        self.spent = 0.0
        self._at = time.monotonic()

    def _drain(self, per_minute: int) -> None:
        now = time.monotonic()
        self.spent = max(0.0, self.spent - (now - self._at) * per_minute / 60)
        self._at = now

    def wait(self, tokens: int, per_minute: int) -> float:
        """Seconds until ``tokens`` may be spent; for more than a minute's, until it is full."""
        self._drain(per_minute)
        over = self.spent + min(tokens, per_minute) - per_minute
        return over * 60 / per_minute

    def spend(self, tokens: int) -> None:
        self.spent += tokens


@dataclass
class _Account:
    """What one tenant has, or all together.

    Attributes:
        live: by vLLM's request id, its demand and its ``RequestState``.
        reserved: demand of requests that are being added.
        limits: as of its last request.
        bucket: its tokens.
        sum: of ``live``; it may still include requests that ended.
    """

    live: dict[str, tuple[Demand, Any]] = field(default_factory=dict)
    reserved: Demand = field(default_factory=Demand)
    limits: Limits = field(default_factory=Limits)
    bucket: Bucket = field(default_factory=Bucket)
    sum: Demand = field(default_factory=Demand)
    next_sweep: int = SWEEP

    @property
    def owes(self) -> bool:
        """Whether its bucket is not full again yet."""
        per_minute = self.limits.tokens_per_minute
        return per_minute is not None and self.bucket.wait(per_minute, per_minute) > 0

    def begin(self, request_id: str, demand: Demand, state: Any, known: Mapping[str, Any]) -> None:
        if len(self.live) >= self.next_sweep:
            self.recount(known)
            self.next_sweep = max(SWEEP, 2 * len(self.live))
        self.live[request_id] = (demand, state)
        self.sum += demand

    def recount(self, known: Mapping[str, Any]) -> None:
        """Drop requests that ended, and queue counts of those that no longer wait."""
        total = Demand()
        live = {}
        for name, (before, state) in self.live.items():
            if name not in known or known[name] is not state:
                continue
            demand = before if state.is_prefilling else replace(before, max_queued_requests=0)
            live[name] = (demand, state)
            total += demand
        self.live, self.sum = live, total


class TenantCounts:
    """Counts of one server's tenants.

    Args:
        config: the operator's settings.
        known: the requests that the front end knows: vLLM's ``OutputProcessor.request_states``.
    """

    def __init__(self, config: TenancyConfig, known: Mapping[str, Any]) -> None:
        self.config = config
        self._known = known
        self._accounts: dict[str, _Account] = {}
        self._all = _Account(limits=config.total)
        self._next_sweep = SWEEP
        self._pays: dict[str, str] = {}

    def limits_of(self, tenant: Tenant) -> Limits:
        """A tenant's own limits; the operator's defaults where it has none."""
        values = vars(self.config.limits) | {
            name: value for name, value in vars(tenant.limits).items() if value is not None
        }
        return Limits(**values)

    def has(self, tenant: str) -> Demand:
        """What a tenant has now."""
        account = self._accounts.get(tenant, _Account())
        account.recount(self._known)
        return account.sum + account.reserved

    def require(self, tenant: Tenant, demand: Demand, prompt_tokens: int) -> None:
        """Refuse a demand that passes a limit.

        Raises:
            VLLMValidationError: 400, it alone passes the limit.
            GracefulHTTPError: 429, naming the limit, the current count, and when to try again.
        """
        account = self._account(tenant.name)
        account.limits = self.limits_of(tenant)
        self._require(f"tenant {tenant.name!r}", account, FLAGS, demand, prompt_tokens)
        self._require("this server", self._all, _TOTAL_FLAGS, demand, prompt_tokens)

    def _require(
        self,
        who: str,
        account: _Account,
        flags: Mapping[str, str],
        demand: Demand,
        prompt_tokens: int,
    ) -> None:
        for name, called in _CALLED.items():
            limit, more = getattr(account.limits, name), getattr(demand, name)
            if limit is None or not more:
                continue
            if more > limit > 0:
                raise VLLMValidationError(
                    f"{who} asks for {more} {called} at once; allowed: {limit} ({flags[name]})"
                )
            if getattr(account.sum + account.reserved, name) + more > limit:
                account.recount(self._known)
            already = getattr(account.sum + account.reserved, name)
            if already + more > limit:
                raise _refused(
                    f"{who} has {already} {called} and asks for {more} more; allowed: {limit} "
                    f"({flags[name]}). Try again when one of them has ended"
                )
        per_minute = account.limits.tokens_per_minute
        if per_minute is None:
            return
        seconds = math.ceil(account.bucket.wait(prompt_tokens, per_minute))
        if seconds > 0:
            raise _refused(
                f"{who} has used its {per_minute} tokens a minute ({flags['tokens_per_minute']}). "
                f"Try again in {seconds} seconds",
                seconds,
            )

    def _account(self, tenant: str) -> _Account:
        if tenant not in self._accounts and len(self._accounts) >= self._next_sweep:
            self._sweep()
        return self._accounts.setdefault(tenant, _Account())

    def _sweep(self) -> None:
        """Forget tenants that have nothing and owe nothing."""
        kept = {}
        for name, account in self._accounts.items():
            account.recount(self._known)
            if account.live or account.reserved != Demand() or account.owes:
                kept[name] = account
        self._accounts = kept
        self._next_sweep = max(SWEEP, 2 * len(kept))

    def reserve(self, tenant: str, demand: Demand, tokens: int) -> None:
        """Count a request that is being added, and spend the ``tokens`` of its prompt."""
        for account in (self._account(tenant), self._all):
            account.reserved += demand
            account.bucket.spend(tokens)

    def give_back(self, tenant: str, demand: Demand, tokens: int) -> None:
        """Undo ``reserve``: a request was not added, or has begun and is counted as live."""
        self.reserve(tenant, demand.times(-1), -tokens)

    def begins(self, tenant: str, request_id: str, demand: Demand) -> None:
        """Count a request that the front end has registered."""
        state = self._known[request_id]
        for account in (self._account(tenant), self._all):
            account.begin(request_id, demand, state, self._known)
        if len(self._pays) >= 2 * len(self._known) + SWEEP:
            self._pays = {r: t for r, t in self._pays.items() if r in self._known}
        self._pays[request_id] = tenant

    def spent(self, request_id: str, tokens: int) -> None:
        """Spend tokens of an answer."""
        tenant = self._pays.get(request_id)
        if tenant is not None:
            self._account(tenant).bucket.spend(tokens)
            self._all.bucket.spend(tokens)


def _refused(message: str, seconds: int = AFTER) -> GracefulHTTPError:
    error = GracefulHTTPError(message, HTTPStatus.TOO_MANY_REQUESTS)
    error.retry_after = max(1, seconds)  # type: ignore[attr-defined]
    return error


# -- a request on its way in ----------------------------------------------------------------------


@dataclass
class Entry:
    """A request that is being added to the engine.

    Attributes:
        config: the operator's settings.
        counts: the server's counts; None if nothing is limited.
        tenant: its tenant.
        demand: of each of its answers.
        answers: number of answers that have not begun.
        tokens: of its prompt, until an answer begins.
    """

    config: TenancyConfig
    counts: TenantCounts | None
    tenant: Tenant
    demand: Demand = field(default_factory=Demand)
    answers: int = 0
    tokens: int = 0

    def reserve(self, answers: int, demand: Demand, prompt_tokens: int) -> None:
        """Reserve all answers of the request.

        Raises:
            GracefulHTTPError: 429.
        """
        if self.counts is None:
            return
        self.counts.require(self.tenant, demand.times(answers), prompt_tokens)
        self.demand, self.answers, self.tokens = demand, answers, prompt_tokens
        self.counts.reserve(self.tenant.name, demand.times(answers), prompt_tokens)

    def begins(self, request_id: str) -> None:
        """Count an answer that the front end has registered."""
        if self.counts is not None and self.answers:
            self.answers -= 1
            self.tokens = 0
            self.counts.give_back(self.tenant.name, self.demand, 0)
            self.counts.begins(self.tenant.name, request_id, self.demand)

    def close(self) -> None:
        """Give back the answers that did not begin."""
        if self.counts is not None and self.answers:
            n, self.answers = self.answers, 0
            self.counts.give_back(self.tenant.name, self.demand.times(n), self.tokens)


#: The request that this task is adding.
ENTRY: ContextVar[Entry] = ContextVar("vllm_sink_entry")

#: The counts of each front end in this process.
_COUNTS: WeakKeyDictionary[Any, TenantCounts] = WeakKeyDictionary()


@contextmanager
def entry(processor: Any, config: TenancyConfig, tenant: Tenant) -> Iterator[None]:
    """Count a request while it is added to the engine; its answers are counted until they end.

    Args:
        processor: vLLM's ``OutputProcessor``.
        config: the operator's settings.
        tenant: of the request.
    """
    counts = None
    if config.counts:
        counts = _COUNTS.get(processor)
        if counts is None:
            counts = _COUNTS[processor] = TenantCounts(config, processor.request_states)
    made = Entry(config, counts, tenant)
    token = ENTRY.set(made)
    try:
        yield
    finally:
        ENTRY.reset(token)
        made.close()


# -- vLLM's output processor, wrapped -------------------------------------------------------------


def count_answer(
    add_request: Callable[..., None], processor: Any, request: Any, *args: Any, **kwargs: Any
) -> None:
    """``OutputProcessor.add_request``: counts an answer."""
    add_request(request, *args, **kwargs)
    found = ENTRY.get(None)
    if found is not None and request.request_id in processor.request_states:
        found.begins(request.request_id)


def spend_tokens(
    process_outputs: Callable[..., Any],
    processor: Any,
    engine_core_outputs: Any,
    *args: Any,
    **kwargs: Any,
) -> Any:
    """``OutputProcessor.process_outputs``: counts generated tokens."""
    counts = _COUNTS.get(processor)
    if counts is not None:
        for output in engine_core_outputs:
            counts.spent(output.request_id, len(output.new_token_ids))
    return process_outputs(engine_core_outputs, *args, **kwargs)
