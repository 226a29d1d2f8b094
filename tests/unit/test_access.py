"""Limits of a tenant: what is refused, what frees room, and what is no limit."""

from __future__ import annotations

from typing import Any

import pytest
from vllm.exceptions import GracefulHTTPError

from vllm_sink.errors import PolicyError
from vllm_sink.serving.access import Access
from vllm_sink.serving.limits import TenantLimits


def _limits(**limits: int) -> tuple[TenantLimits, set[str]]:
    """Limits, and the requests that the front end knows."""
    return TenantLimits(Access(**limits), default_sinks=4), set()


def _begin(limits: TenantLimits, known: set[str], name: str, tenant: str, **asked: int) -> None:
    ticket = limits.admit(tenant, asked.get("streams", 1), asked.get("sinks", 4))
    for i in range(asked.get("streams", 1)):
        known.add(f"{name}-{i}")
        limits.begins(f"{name}-{i}", ticket, known)


def test_streams_of_a_tenant_are_bounded_and_others_are_not() -> None:
    limits, known = _limits(max_streams=2)
    _begin(limits, known, "a", "me", streams=2)
    with pytest.raises(
        GracefulHTTPError, match=r"2 live streams .* allowed: 2 \(--sink-tenant-max"
    ):
        limits.admit("me", 1, 4)
    _begin(limits, known, "b", "you")
    known.discard("a-0")
    _begin(limits, known, "c", "me")


def test_what_was_let_in_counts_before_it_begins() -> None:
    limits, _ = _limits(max_streams=1)
    ticket = limits.admit("me", 1, 4)
    with pytest.raises(GracefulHTTPError) as refused:
        limits.admit("me", 1, 4)
    assert refused.value.http_status == 429
    limits.forget(ticket)
    limits.admit("me", 1, 4)


def test_pinned_tokens_are_those_of_all_live_streams() -> None:
    limits, known = _limits(max_pinned_tokens=100)
    _begin(limits, known, "a", "me", sinks=60)
    with pytest.raises(GracefulHTTPError, match=r"60 pinned tokens and asks for 80 more"):
        limits.admit("me", 2, 40)
    _begin(limits, known, "b", "me", sinks=40)


def test_who_names_nobody_is_one_tenant() -> None:
    limits, known = _limits(max_streams=1)
    _begin(limits, known, "a", "")
    with pytest.raises(GracefulHTTPError, match="tenant 'none'"):
        limits.admit("", 1, 4)


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
