"""Limits of a tenant: what is refused, what frees room, and what is no limit."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import pytest
from vllm.exceptions import GracefulHTTPError

from vllm_sink.errors import PolicyError
from vllm_sink.serving.access import Access
from vllm_sink.serving.limits import SWEEP, TenantLimits


def _limits(**limits: int) -> tuple[TenantLimits, set[str]]:
    """Limits, and the requests that the front end knows."""
    return TenantLimits(Access(**limits)), set()


def _begin(limits: TenantLimits, known: set[str], name: str, tenant: str, **asked: int) -> None:
    streams = asked.get("streams", 1)
    with limits.admit(tenant, streams, asked.get("sinks", 4)) as admission:
        for i in range(streams):
            known.add(f"{name}-{i}")
            admission.begins(f"{name}-{i}", known)


def _ask(limits: TenantLimits, tenant: str, streams: int = 1, sinks: int = 4) -> None:
    """A request that is let in and never begins."""
    with limits.admit(tenant, streams, sinks):
        pass


def test_streams_of_a_tenant_are_bounded_and_others_are_not() -> None:
    limits, known = _limits(max_streams=2)
    _begin(limits, known, "a", "me", streams=2)
    with pytest.raises(
        GracefulHTTPError, match=r"2 live streams .* allowed: 2 \(--sink-tenant-max"
    ):
        _ask(limits, "me")
    _begin(limits, known, "b", "you")
    known.discard("a-0")
    _begin(limits, known, "c", "me")


def test_what_was_let_in_counts_before_it_begins_and_only_then() -> None:
    limits, _ = _limits(max_streams=1)
    with limits.admit("me", 1, 4), pytest.raises(GracefulHTTPError) as refused:
        _ask(limits, "me")
    assert refused.value.http_status == 429
    _ask(limits, "me")


def test_a_request_that_is_refused_elsewhere_leaves_nothing() -> None:
    limits, _ = _limits(max_streams=1)
    for _ in range(1000):
        with pytest.raises(ValueError, match="sink_tokens"), limits.admit("me", 1, 4):
            raise ValueError("sink_tokens")
    _ask(limits, "me")


def test_pinned_tokens_are_those_of_all_live_streams() -> None:
    limits, known = _limits(max_pinned_tokens=100)
    _begin(limits, known, "a", "me", sinks=60)
    with pytest.raises(GracefulHTTPError, match=r"60 pinned tokens and asks for 80 more"):
        _ask(limits, "me", 2, 40)
    _begin(limits, known, "b", "me", sinks=40)


def test_who_names_nobody_is_one_tenant() -> None:
    limits, known = _limits(max_streams=1)
    _begin(limits, known, "a", "")
    with pytest.raises(GracefulHTTPError, match="tenant 'none'"):
        _ask(limits, "")


def test_tenants_that_left_are_forgotten() -> None:
    limits, known = _limits(max_streams=1)
    _begin(limits, known, "stays", "me")
    for i in range(3 * SWEEP):
        _begin(limits, known, f"a{i}", f"tenant {i}")
        known.discard(f"a{i}-0")
    assert len(limits._tenants) <= SWEEP + 1
    with pytest.raises(GracefulHTTPError):
        _ask(limits, "me")


def test_several_requests_of_a_tenant_at_once() -> None:
    limits, known = _limits(max_streams=3)
    with ExitStack() as stack:
        admissions = [stack.enter_context(limits.admit("me", 1, 4)) for _ in range(3)]
        for i, admission in enumerate(admissions):
            known.add(str(i))
            admission.begins(str(i), known)
        with pytest.raises(GracefulHTTPError, match="3 live streams and asks for 1 more"):
            _ask(limits, "me")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"max_streams": 1}, "--sink-tenant-max-streams: 1 is not allowed; allowed: a limit only"),
        ({"max_streams": -1}, "--sink-tenant-max-streams: -1 is not allowed"),
        ({"max_stream": 1}, "sink_access.max_stream: 1 is not allowed; allowed: one of max_str"),
        ([1], "sink_access"),
    ],
)
def test_bad_limits(given: Any, said: str) -> None:
    with pytest.raises(PolicyError) as refused:
        Access.from_config({"sink_access": given})
    assert said in str(refused.value)
