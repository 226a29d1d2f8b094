"""The tenant label stays bounded whatever requests say."""

from __future__ import annotations

import pytest

from vllm_sink.errors import PolicyError
from vllm_sink.metrics.config import MetricsConfig
from vllm_sink.metrics.stats import StreamStats
from vllm_sink.metrics.tenants import MAX_LENGTH, NONE, OTHER, Tenants


def test_at_most_so_many_labels() -> None:
    tenants = Tenants(3)
    labels = [tenants.label(f"tenant {i % 7}") for i in range(1000)]
    assert set(labels) == {"tenant 0", "tenant 1", "tenant 2", OTHER}
    assert tenants.label(None) == tenants.label("") == NONE
    stats = StreamStats()
    tenants.level(stats)
    assert len(stats.tenants) == 3 + 2


def test_a_label_stays_with_its_name() -> None:
    tenants = Tenants(1)
    assert [tenants.label(n) for n in ("a", "b", "a", OTHER, NONE)] == [
        "a",
        OTHER,
        "a",
        OTHER,
        NONE,
    ]


def test_long_names_are_cut() -> None:
    assert Tenants(1).label("x" * 10_000) == "x" * MAX_LENGTH


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"tenant_label": "me"}, "--sink-tenant-label"),
        ({"tenant_label": "header:"}, "--sink-tenant-label"),
        ({"tenant_label": "header:X Tenant"}, "--sink-tenant-label"),
        ({"tenant_label": 5}, "--sink-tenant-label"),
        ({"max_tenants": 0}, "--sink-max-tenants"),
        ({"max_tenants": "3"}, "--sink-max-tenants"),
        ({"tenants": 3}, "sink_metrics.tenants"),
    ],
)
def test_bad_settings(given: dict[str, object], field: str) -> None:
    with pytest.raises(PolicyError) as caught:
        MetricsConfig.from_config({"sink_metrics": given})
    assert caught.value.field == field
    assert "\n" not in str(caught.value)


def test_headers_are_lower_case() -> None:
    config = MetricsConfig.from_config({"sink_metrics": {"tenant_label": "header:X-Tenant"}})
    assert config.header == "x-tenant"
    assert MetricsConfig.from_config({}).on is False
