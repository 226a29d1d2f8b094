"""Tenants: settings, whose a request is, what is counted, and how it is shown."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import pytest
from vllm.exceptions import GracefulHTTPError, VLLMValidationError

from vllm_sink.client_request import ClientRequest
from vllm_sink.config.tenancy import FLAGS, Limits, TenancyConfig
from vllm_sink.errors import PolicyError
from vllm_sink.tenancy import keys, limits
from vllm_sink.tenancy.identity import cache_salt, tenant_of
from vllm_sink.tenancy.keys import Tenant, TenantKeys
from vllm_sink.tenancy.labels import NONE, OTHER, Labels, hashed
from vllm_sink.tenancy.limits import Bucket, Demand, Entry, TenantCounts

# -- settings --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"tenant_label": "me"}, "--sink-tenant-label"),
        ({"tenant_label": "header:"}, "--sink-tenant-label"),
        ({"tenant_label": "header:X Tenant"}, "--sink-tenant-label"),
        ({"tenant_label": 5}, "--sink-tenant-label"),
        ({"tenant_label": "key"}, "--sink-tenant-label"),
        ({"tenant_label": "user", "tenant_keys": "/file"}, "--sink-tenant-label"),
        ({"tenant_keys": 5}, "--sink-tenant-keys"),
        ({"tenant_names": "shown"}, "--sink-tenant-names"),
        ({"max_tenants": 0}, "--sink-max-tenants"),
        ({"max_tenants": "3"}, "--sink-max-tenants"),
        ({"tenants": 3}, "sink_tenancy.tenants"),
        ({"isolate_tenants": True}, "--sink-isolate-tenants"),
        *(({name: -1}, FLAGS[name]) for name in FLAGS if name.startswith(("max_", "total_"))),
        *(({name: 3}, FLAGS[name]) for name in vars(Limits())),
        ({"tenant_label": "user", "tokens_per_minute": 0}, "--sink-tenant-tokens-per-minute"),
    ],
)
def test_bad_settings(given: dict[str, object], field: str) -> None:
    with pytest.raises(PolicyError) as caught:
        TenancyConfig.from_config({"sink_tenancy": given})
    assert caught.value.field == field
    assert "\n" not in str(caught.value)


def test_every_limit_is_read() -> None:
    numbers = {name: i + 2 for i, name in enumerate(vars(Limits()))}
    total = {"total_max_pinned_tokens": 7, "total_tokens_per_minute": 8}
    given = {"tenant_label": "header:X-Tenant", **numbers, **total}
    config = TenancyConfig.from_config({"sink_tenancy": given})
    assert vars(config.limits) == numbers
    assert config.total == Limits(max_pinned_tokens=7, tokens_per_minute=8)
    assert config.header == "x-tenant"
    assert not TenancyConfig.from_config({}).on
    assert not TenancyConfig.from_config({}).counts


# -- the file of keys ------------------------------------------------------------------------------

FILE = """
tenants:
  - name: press
    keys: [sk-1, sk-2]
    max_streams: 4
  - name: radio
    keys: ["sha256:{}"]
    tokens_per_minute: 100
    operator: true
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "tenants.yaml"
    path.write_text(FILE.format(hashlib.sha256(b"sk-3").hexdigest()))
    return path


def test_keys_are_found_as_they_are_and_by_their_hash(file: Path) -> None:
    found = TenantKeys(str(file))
    press = Tenant("press", Limits(max_streams=4))
    assert [found.find(k) for k in ("sk-1", "sk-2")] == [press, press]
    assert found.find("sk-3") == Tenant("radio", Limits(tokens_per_minute=100), operator=True)
    assert found.find("sk-4") is None
    # What is listed as a hash is not itself a key.
    assert found.find("sha256:" + hashlib.sha256(b"sk-3").hexdigest()) is None


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{", "a file of YAML"),
        ("tenants: 5", '"tenants", a list'),
        ("tenants: []", '"tenants", a list'),
        ("[]", '"tenants", a list'),
        ("tenants: [5]", '{"name": …, "keys": […]}'),
        ("tenants: [{name: a, keys: [k], max_stream: 3}]", "max_stream: 3 is not allowed"),
        ("tenants: [{name: 5, keys: [k]}]", "name: 5 is not allowed"),
        ('tenants: [{name: "", keys: [k]}]', "name: '' is not allowed"),
        ('tenants: [{name: "a\\nb", keys: [k]}]', "printable"),
        ("tenants: [{name: a, keys: k}]", "keys of a: 'str' is not allowed"),
        ("tenants: [{name: a, keys: []}]", "keys of a"),
        ("tenants: [{name: a}]", "keys of a"),
        ("tenants: [{name: a, keys: [k]}, {name: a, keys: [l]}]", "each name once"),
        ("tenants: [{name: a, keys: [k]}, {name: b, keys: [k]}]", "each key once"),
        ("tenants: [{name: a, keys: ['sha256:12']}]", "64 hexadecimal digits"),
        ("tenants: [{name: a, keys: [k], max_streams: -1}]", "max_streams of a: -1"),
        ("tenants: [{name: a, keys: [k], operator: 1}]", "operator of a: 1"),
    ],
)
def test_a_file_that_is_wrong_is_refused_without_its_keys(
    text: str, told: str, tmp_path: Path
) -> None:
    path = tmp_path / "tenants.yaml"
    path.write_text(text.replace("[k", "[sk-secret"))
    with pytest.raises(PolicyError, match="--sink-tenant-keys") as caught:
        keys.read(str(path))
    assert told in str(caught.value)
    assert "sk-secret" not in str(caught.value)


def test_no_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match="--sink-tenant-keys"):
        keys.read(str(tmp_path / "nothing"))


def test_the_file_is_read_again_when_it_changes(file: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(keys, "BETWEEN", 0.0)
    found = TenantKeys(str(file))
    file.write_text("tenants: [{name: new, keys: [sk-9]}]")
    assert found.find("sk-1") is None
    assert found.find("sk-9") == Tenant("new")
    # An invalid or missing file changes nothing.
    file.write_text("tenants: [")
    assert found.find("sk-9") == Tenant("new")
    file.unlink()
    assert found.find("sk-9") == Tenant("new")
    # As Kubernetes changes a mounted secret: another file under the name.
    other = file.with_suffix(".new")
    other.write_text("tenants: [{name: newer, keys: [sk-9]}]")
    os.replace(other, file)
    assert found.find("sk-9") == Tenant("newer")


def test_a_signal_has_it_read_at_once(file: Path) -> None:
    found = TenantKeys(str(file))
    file.write_text("tenants: [{name: new, keys: [sk-9]}]")
    assert found.find("sk-9") is None
    found.look_now()
    assert found.find("sk-9") == Tenant("new")


# -- whose a request is ----------------------------------------------------------------------------


def _caller(*headers: tuple[str, str], **fields: Any) -> ClientRequest:
    return ClientRequest([(n.encode(), v.encode()) for n, v in headers], fields)


def test_a_key_comes_in_either_header(file: Path) -> None:
    config = TenancyConfig.from_config({"sink_tenancy": {"tenant_keys": str(file)}})
    assert tenant_of(config, _caller(("authorization", "Bearer sk-1"))).name == "press"
    assert tenant_of(config, _caller(("authorization", "bearer sk-3"))).name == "radio"
    assert tenant_of(config, _caller(("x-api-key", "sk-2"))).name == "press"
    for headers in ((), (("authorization", "Basic sk-1"),), (("authorization", "Bearer sk"),)):
        with pytest.raises(GracefulHTTPError) as caught:
            tenant_of(config, _caller(*headers, user="press"))
        assert caught.value.http_status == 401
    with pytest.raises(PolicyError, match="authorization"):
        tenant_of(config, _caller(*[("authorization", "Bearer sk-1")] * 2))


def test_a_header_or_a_field_names_the_tenant() -> None:
    config = TenancyConfig("header:X-Tenant")
    assert tenant_of(config, _caller(("x-tenant", "a"), user="b")).name == "a"
    assert tenant_of(config, _caller(user="b")).name == NONE
    assert tenant_of(TenancyConfig("user"), _caller(user="b" * 1000)).name == "b" * 64
    with pytest.raises(PolicyError, match="user"):
        tenant_of(TenancyConfig("user"), _caller(user="\ud800"))


def test_no_salt_of_one_tenant_is_anothers() -> None:
    pairs = [("a", None), ("a", "b"), ("ab", None), ("a", "null"), ("b", "a"), ('a", "b', None)]
    assert len({cache_salt(*pair) for pair in pairs}) == len(pairs)


# -- what is counted -------------------------------------------------------------------------------


class State:
    """vLLM's ``RequestState``, as far as it is read."""

    is_prefilling = True


class Front:
    """A front end: its counts, and the requests that it knows."""

    def __init__(self, total: Limits | None = None, **given: int) -> None:
        self.known: dict[str, State] = {}
        of_all = {f"total_{k}": v for k, v in vars(total).items() if v is not None} if total else {}
        config = TenancyConfig("user", **given, **of_all)
        self.counts = TenantCounts(config, self.known)

    def add(
        self, name: str, tenant: str = "me", n: int = 1, sinks: int = 4, tokens: int = 0
    ) -> None:
        entry = self.enter(tenant, n, sinks, tokens)
        for i in range(n):
            self.known[f"{name}-{i}"] = State()
            entry.begins(f"{name}-{i}")
        entry.close()

    def enter(self, tenant: str = "me", n: int = 1, sinks: int = 4, tokens: int = 0) -> Entry:
        entry = Entry(self.counts.config, self.counts, Tenant(tenant))
        entry.reserve(n, Demand(1, sinks, 1), tokens)
        return entry


def test_streams_of_a_tenant_are_bounded_and_others_are_not() -> None:
    front = Front(max_streams=2)
    front.add("a", n=2)
    with pytest.raises(GracefulHTTPError, match=r"2 live streams .* allowed: 2 \(--sink-tenant-"):
        front.enter()
    front.add("b", "you")
    del front.known["a-0"]
    front.add("c")
    # Neither now nor later.
    with pytest.raises(VLLMValidationError, match="asks for 3 live streams at once; allowed: 2"):
        front.enter(n=3)


def test_what_is_reserved_counts_until_it_is_given_back() -> None:
    front = Front(max_streams=1)
    entry = front.enter()
    with pytest.raises(GracefulHTTPError) as refused:
        front.enter()
    assert refused.value.http_status == 429
    assert refused.value.retry_after >= 1  # type: ignore[attr-defined]
    entry.close()
    front.add("a")


def test_a_thousand_refused_requests_leave_nothing() -> None:
    front = Front(max_streams=1, max_pinned_tokens=100, max_queued_requests=3)
    front.add("a")
    for i in range(1000):
        if i % 2:
            front.known.clear()
            front.enter().close()  # refused elsewhere, after it was admitted here
        else:
            front.add("b") if not front.known else None
            with pytest.raises(GracefulHTTPError):
                front.enter()
    front.known.clear()
    assert front.counts.has("me") == Demand()
    assert front.counts._all.reserved == Demand()


def test_pinned_tokens_and_those_of_all() -> None:
    front = Front(Limits(max_pinned_tokens=150), max_pinned_tokens=100)
    front.add("a", sinks=60)
    with pytest.raises(GracefulHTTPError, match="60 pinned tokens and asks for 80 more"):
        front.enter(n=2, sinks=40)
    front.add("b", "you", sinks=80)
    with pytest.raises(GracefulHTTPError, match=r"this server has 140 .* \(--sink-max-pinned-tok"):
        front.enter("third", sinks=40)


def test_a_request_queues_until_its_first_token() -> None:
    front = Front(max_queued_requests=2)
    front.add("a", n=2)
    with pytest.raises(GracefulHTTPError, match="2 queued requests"):
        front.enter()
    front.known["a-1"].is_prefilling = False
    front.add("b")


def test_a_tenants_own_limits_go_before_the_flags() -> None:
    front = Front(max_streams=1, max_pinned_tokens=50)
    own = Tenant("press", Limits(max_streams=3))
    assert front.counts.limits_of(own) == Limits(max_streams=3, max_pinned_tokens=50)


def test_tokens_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(limits.time, "monotonic", lambda: now[0])
    front = Front(tokens_per_minute=600)  # ten a second
    front.add("a", tokens=400)
    front.counts.spent("a-0", 150)
    with pytest.raises(GracefulHTTPError, match="600 tokens a minute") as refused:
        front.enter(tokens=100)
    assert refused.value.retry_after == 5  # type: ignore[attr-defined]
    front.add("other", "you", tokens=600)
    now[0] += 5
    front.add("b", tokens=100)
    # A stream's tokens are spent once generated; a prompt over the quota waits for all of it.
    front.counts.spent("a-0", 1200)
    with pytest.raises(GracefulHTTPError, match="Try again in 180 seconds"):
        front.enter(tokens=5000)
    now[0] += 180
    front.enter(tokens=5000).close()
    assert front.counts._account("me").bucket.wait(600, 600) == 0


def test_a_bucket_starts_full_and_holds_no_more() -> None:
    assert Bucket().wait(10, 10) <= 0
    assert Bucket().wait(10**9, 10) <= 0


def test_nothing_grows_with_what_has_ended() -> None:
    front = Front(max_streams=5)
    for i in range(20_000):
        front.add(f"r{i}", f"tenant {i % 3000}")
        front.known.clear()
    assert len(front.counts._accounts) <= 2 * limits.SWEEP + 1
    assert len(front.counts._pays) <= 2 * limits.SWEEP + 1
    assert len(front.counts._all.live) <= 2 * limits.SWEEP + 1


# -- labels ----------------------------------------------------------------------------------------


def test_at_most_so_many_labels() -> None:
    labels = Labels(3, plain=True)
    given = [labels.of(f"tenant {i % 7}") for i in range(1000)]
    assert set(given) == {"tenant 0", "tenant 1", "tenant 2", OTHER}
    assert labels.of(None) == labels.of("") == NONE
    assert list(labels) == ["tenant 0", "tenant 1", "tenant 2", OTHER, NONE]


def test_a_label_stays_with_its_name() -> None:
    labels = Labels(1, plain=True)
    assert [labels.of(n) for n in ("a", OTHER, "b", "a")] == ["a", OTHER, OTHER, "a"]


def test_labels_hide_names_unless_they_are_to_be_shown() -> None:
    labels = Labels(3, plain=False)
    assert labels.of("anna") == hashed("anna") == hashlib.sha256(b"anna").hexdigest()[:12]
    assert "anna" not in list(labels)
