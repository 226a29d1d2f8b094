"""The two rules against a cache that is kept token by token, and what the policy refuses."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import pytest

from vllm_sink import policy
from vllm_sink.config.kv_policy import KVPolicy
from vllm_sink.errors import PolicyError

LENGTH = 60
SHAPES = list(product((0, 1, 3, 4, 5, 9), (1, 2, 3, 4, 5, 8, 11)))
BLOCKS = (1, 3, 4, 16)


def caches(sinks: int, window: int, length: int = LENGTH) -> Iterator[list[int]]:
    """The cache of tokens 0, 1, ... as the paper keeps it: append, and evict behind the sinks."""
    cache: list[int] = []
    for t in range(length):
        cache.append(t)
        if len(cache) > sinks + window:
            del cache[sinks]
        yield cache


@pytest.mark.parametrize(("sinks", "window"), SHAPES)
def test_position_is_the_place_in_the_cache(sinks: int, window: int) -> None:
    """``p(t)`` is token ``t``'s position in the cache, ``e(t)`` the number evicted before it."""
    for t, cache in enumerate(caches(sinks, window)):
        assert policy.cache_position(t, sinks, window) == cache.index(t)
        assert policy.evicted_tokens(t, sinks, window) == t + 1 - len(cache)


@pytest.mark.parametrize(("sinks", "window"), SHAPES)
def test_visible_is_what_the_cache_holds(sinks: int, window: int) -> None:
    """Sinks, and what ``window_start`` leaves: together the cache, token for token."""
    for t, cache in enumerate(caches(sinks, window)):
        seen = set(range(min(sinks, t + 1))) | set(range(policy.window_start(t, window), t + 1))
        assert sorted(seen) == cache


def test_positions_are_exact_far_out() -> None:
    """Integers all the way: nothing is lost at an index that a float could not hold."""
    t = (1 << 62) + 1
    assert policy.cache_position(t, 4, 1020) == 1023
    assert policy.evicted_tokens(t, 4, 1020) == t - 1023
    assert policy.window_start(t, 1020) == t - 1019


@pytest.mark.parametrize(("a", "b"), product(range(20), range(1, 8)))
def test_cdiv(a: int, b: int) -> None:
    assert policy.cdiv(a, b) == len(range(0, a, b))


@pytest.mark.parametrize("size", BLOCKS)
@pytest.mark.parametrize(("sinks", "window"), SHAPES)
def test_blocks_are_the_ones_that_the_cache_touches(sinks: int, window: int, size: int) -> None:
    """Pinned blocks and those from ``window_block`` on are the blocks of the cache, no others."""
    pinned = policy.sink_blocks(sinks, size)
    assert pinned == len({j // size for j in range(sinks)})
    for t, cache in enumerate(caches(sinks, window)):
        first = policy.window_block(t, window, size)
        kept = {i for i in range(t // size + 1) if i < pinned or i >= first}
        assert kept == {j // size for j in cache}
        assert first == (t - min(t, window - 1)) // size


@pytest.mark.parametrize("size", BLOCKS)
@pytest.mark.parametrize(("sinks", "window"), SHAPES)
def test_max_blocks_is_never_exceeded(sinks: int, window: int, size: int) -> None:
    """Whatever chunk is in flight, wherever it begins, its tokens read no more than the bound."""
    history = [set(cache) for cache in caches(sinks, window)]
    for in_flight, total in product((1, 2, 5, 16), (1, 7, 33, LENGTH)):
        most = policy.max_blocks(sinks, window, in_flight, total, size)
        for start in range(total):
            seen = set().union(*history[start : min(start + in_flight, total)])
            assert len({j // size for j in seen}) <= most
        # It is no larger than it must be by more than a block at either end of the window.
        assert most <= policy.cdiv(total, size)
        assert most <= (sinks + window + in_flight) // size + 4


# -- start-up settings -----------------------------------------------------------------------------


def test_defaults() -> None:
    """A name alone is a policy; the paper's four sinks belong to ``sink`` only."""
    assert KVPolicy.from_config("sink") == KVPolicy("sink", sink_tokens=4)
    assert KVPolicy.from_config({}) == KVPolicy("sink", sink_tokens=4)
    assert KVPolicy.from_config({"name": "window", "window_tokens": 8}) == KVPolicy("window", 0, 8)
    assert not KVPolicy.from_config("full").active
    assert KVPolicy.from_config({"sink_tokens": 0}).sink_tokens == 0


@pytest.mark.parametrize(
    "chosen",
    [
        KVPolicy("full", 0),
        KVPolicy("window", 0, 64, 2048),
        KVPolicy("sink", 4, 1020, 4096, True),
        KVPolicy("sink", 0, 1),
    ],
)
def test_config_round_trip(chosen: KVPolicy) -> None:
    """The workers get the policy that the server was started with."""
    assert KVPolicy.from_config(chosen.to_config()) == chosen


def test_unresolved_policy_has_no_window() -> None:
    """No computation uses a window that was never chosen."""
    for field in ("window", "native"):
        with pytest.raises(PolicyError, match="not resolved"):
            getattr(KVPolicy("sink"), field)


BAD: list[tuple[object, str, object, str]] = [
    ({"name": "sinks"}, "--kv-policy", "sinks", "full, window, sink"),
    ("Sink", "--kv-policy", "Sink", "full, window, sink"),
    ({"name": None}, "--kv-policy", None, "full, window, sink"),
    ({"name": ["sink"]}, "--kv-policy", ["sink"], "full, window, sink"),
    ({"sink_tokens": -1}, "--sink-tokens", -1, "an integer of at least 0"),
    ({"sink_tokens": 4.0}, "--sink-tokens", 4.0, "an integer of at least 0"),
    ({"sink_tokens": "4"}, "--sink-tokens", "4", "an integer of at least 0"),
    ({"sink_tokens": True}, "--sink-tokens", True, "an integer of at least 0"),
    ({"sink_tokens": [4]}, "--sink-tokens", [4], "an integer of at least 0"),
    ({"window_tokens": 0}, "--window-tokens", 0, "an integer of at least 1"),
    ({"window_tokens": -8}, "--window-tokens", -8, "an integer of at least 1"),
    ({"window_tokens": 64.0}, "--window-tokens", 64.0, "an integer of at least 1"),
    ({"window_tokens": "64"}, "--window-tokens", "64", "an integer of at least 1"),
    ({"window_tokens": False}, "--window-tokens", False, "an integer of at least 1"),
    ({"windows": 64}, "kv_policy.windows", 64, "window_tokens"),
    ({1: 64}, "kv_policy.1", 64, "window_tokens"),
    ({"name": "window", "sink_tokens": 4}, "--sink-tokens", 4, "0 with --kv-policy window"),
    (None, "kv_policy", None, '{"name": "sink"}'),
    (4, "kv_policy", 4, '{"name": "sink"}'),
    (["sink"], "kv_policy", ["sink"], '{"name": "sink"}'),
]


@pytest.mark.parametrize(("config", "field", "value", "allowed"), BAD, ids=repr)
def test_bad_config_names_field_value_and_what_is_allowed(
    config: object, field: str, value: object, allowed: str
) -> None:
    with pytest.raises(PolicyError) as refused:
        KVPolicy.from_config(config)
    assert refused.value.field == field
    assert refused.value.value == value
    assert type(refused.value.value) is type(value)
    assert allowed in refused.value.allowed
    for part in (field, repr(value), allowed):
        assert part in str(refused.value)
