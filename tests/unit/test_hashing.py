"""Prefix hits with a hole, and which requests may share blocks, on vLLM's real block pool."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from vllm.sampling_params import SamplingParams
from vllm.utils.hashing import get_hash_fn_by_name
from vllm.v1.core.block_pool import BlockPool
from vllm.v1.core.kv_cache_utils import KVCacheBlock, get_request_block_hasher, init_none_hash
from vllm.v1.request import Request

from vllm_sink.cache.hashing import SinkBlockHashes, sink_block_hasher
from vllm_sink.cache.manager import SinkWindowManager
from vllm_sink.cache.spec import SinkWindowSpec
from vllm_sink.policy import StreamPolicy

SIZE = 4
HASH = get_hash_fn_by_name("sha256")
DEFAULT = StreamPolicy(5, 9)
init_none_hash(HASH)


def make_request(
    tokens: Sequence[int],
    kept: StreamPolicy | None = None,
    default: StreamPolicy = DEFAULT,
    salt: str | None = None,
) -> Request:
    """A request hashed as vLLM does, or under what it keeps beside the engine's default."""
    request = Request(
        request_id="request",
        prompt_token_ids=list(tokens),
        sampling_params=SamplingParams(max_tokens=1),
        pooling_params=None,
        block_hasher=get_request_block_hasher(SIZE, HASH),
        cache_salt=salt,
    )
    if kept is not None:
        shared = min(kept.sees_everything_below, default.sees_everything_below)
        request.block_hashes = SinkBlockHashes(kept)
        request._block_hasher = sink_block_hasher(SIZE, HASH, kept, shared)
        request.update_block_hashes()
    return request


class Cache:
    """A pool in which every block of a request was computed, and then some were evicted."""

    def __init__(self, request: Request, sinks: int, window: int) -> None:
        self.spec = SinkWindowSpec(
            block_size=SIZE,
            num_kv_heads=1,
            head_size=8,
            dtype=torch.float32,
            sink_tokens=sinks,
            window_tokens=window,
        )
        self.pool = BlockPool(64, enable_caching=True, hash_block_size=SIZE)
        full = request.num_tokens // SIZE
        self.blocks = self.pool.get_new_blocks(full)
        self.pool.cache_full_blocks(request, self.blocks, 0, full, SIZE, 0)
        self.pool.free_blocks(reversed(self.blocks))

    def evict(self, *indices: int) -> None:
        self.pool.evict_blocks({self.blocks[i].block_id for i in indices})

    def hit(self, request: Request, max_length: int | None = None) -> list[KVCacheBlock]:
        """The blocks of the longest hit; its length agrees with them."""
        most = request.num_tokens - 1 if max_length is None else max_length
        (blocks,), length = SinkWindowManager.find_longest_cache_hit(
            block_hashes=request.block_hashes,
            max_length=most,
            kv_cache_group_ids=[0],
            block_pool=self.pool,
            kv_cache_spec=self.spec,
            drop_eagle_block=False,
            alignment_tokens=SIZE,
        )
        assert length == len(blocks) * SIZE
        return blocks

    def places(self, request: Request, max_length: int | None = None) -> list[int | None]:
        """The hit, each block named by its place in the request that was cached."""
        index = {block.block_id: i for i, block in enumerate(self.blocks)}
        return [None if b.is_null else index[b.block_id] for b in self.hit(request, max_length)]


TOKENS = list(range(100, 141))  # 10 blocks and one token


def test_all_cached() -> None:
    """Everything is there: the hit takes the sinks and the window, and leaves the rest alone."""
    cache = Cache(make_request(TOKENS), sinks=5, window=9)
    # Token 40 reads 32 .. 39 in its window, and the sinks 0 .. 4.
    assert cache.places(make_request(TOKENS)) == [0, 1, *[None] * 6, 8, 9]


def test_sinks_and_window_hit_though_the_middle_is_gone() -> None:
    cache = Cache(make_request(TOKENS), sinks=5, window=9)
    cache.evict(*range(2, 8))
    assert cache.places(make_request(TOKENS)) == [0, 1, *[None] * 6, 8, 9]


@pytest.mark.parametrize("gone", [0, 1])
def test_no_hit_beyond_a_missing_sink(gone: int) -> None:
    """What lies below the missing sink block is still a prefix."""
    cache = Cache(make_request(TOKENS), sinks=5, window=9)
    cache.evict(gone)
    assert cache.places(make_request(TOKENS)) == list(range(gone))


def test_a_missing_window_block_shortens_the_hit() -> None:
    """Without block 8 the longest usable prefix ends before it, and reads 6 and 7."""
    cache = Cache(make_request(TOKENS), sinks=5, window=9)
    cache.evict(8)
    assert cache.places(make_request(TOKENS)) == [0, 1, *[None] * 4, 6, 7]


def test_a_window_that_is_nowhere_whole_leaves_the_sinks() -> None:
    """Every second block is gone: no run of two is left behind the sinks."""
    cache = Cache(make_request(TOKENS), sinks=5, window=9)
    cache.evict(3, 5, 7, 9)
    assert cache.places(make_request(TOKENS)) == [0, 1, 2]


def test_a_missing_block_is_skipped_once_it_is_in_the_middle() -> None:
    """Block 2 is missed by prefixes that end near it, not by those far behind."""
    cache = Cache(make_request(TOKENS), sinks=5, window=9)
    cache.evict(2)
    assert cache.places(make_request(TOKENS)) == [0, 1, *[None] * 6, 8, 9]
    assert cache.places(make_request(TOKENS[:17])) == [0, 1]
    # Token 20 reads from 12 on.
    assert cache.places(make_request(TOKENS[:21])) == [0, 1, None, 3, 4]


def test_a_prompt_shorter_than_its_sinks() -> None:
    """Sinks that the request does not have yet cannot be missing."""
    cache = Cache(make_request(TOKENS), sinks=20, window=9)
    assert cache.places(make_request(TOKENS[:9])) == [0, 1]
    assert cache.places(make_request(TOKENS[:8])) == [0]
    assert cache.places(make_request(TOKENS[:4])) == []


def test_sinks_that_reach_into_the_window() -> None:
    """Pinned and windowed blocks overlap: each is taken once, in its place."""
    cache = Cache(make_request(TOKENS), sinks=18, window=9)
    assert cache.places(make_request(TOKENS[:25])) == [0, 1, 2, 3, 4, 5]


def test_no_sinks() -> None:
    cache = Cache(make_request(TOKENS), sinks=0, window=9)
    cache.evict(*range(8))
    assert cache.places(make_request(TOKENS)) == [*[None] * 8, 8, 9]


@pytest.mark.parametrize("window", [2, 3, SIZE, SIZE + 1])
def test_a_window_within_one_block_needs_that_block(window: int) -> None:
    """Token ``t`` = 40 reads 40 - W + 1 .. 39 of the cache: the last block alone up to W = 5."""
    cache = Cache(make_request(TOKENS), sinks=1, window=window)
    cache.evict(*range(1, 9))
    assert cache.places(make_request(TOKENS)) == [0, *[None] * 8, 9]
    cache.evict(9)
    assert cache.places(make_request(TOKENS)) == [0]


def test_one_token_more_needs_one_block_more() -> None:
    cache = Cache(make_request(TOKENS), sinks=1, window=SIZE + 2)
    assert cache.places(make_request(TOKENS)) == [0, *[None] * 7, 8, 9]
    cache.evict(8)
    assert cache.places(make_request(TOKENS)) == [0, *[None] * 5, 6, 7]


def test_a_window_of_one_reads_itself_alone() -> None:
    """W = 1: behind the sinks nothing cached is read, so a hit is as long as it may be."""
    cache = Cache(make_request(TOKENS), sinks=4, window=1)
    cache.evict(*range(1, 10))
    assert cache.places(make_request(TOKENS)) == [0, *[None] * 9]
    cache.evict(0)
    assert cache.places(make_request(TOKENS)) == []


def test_the_last_token_is_never_hit() -> None:
    """``max_length`` is one below the request's length: its logits must be computed."""
    cache = Cache(make_request(TOKENS), sinks=5, window=9)
    assert len(cache.hit(make_request(TOKENS[:40]))) == 9
    assert len(cache.hit(make_request(TOKENS), max_length=3)) == 0


@pytest.mark.parametrize("differs", [0, 6, 22, 39])
def test_another_prefix_shares_nothing_from_there_on(differs: int) -> None:
    """A hash chains over its whole prefix: the evicted middle must agree too."""
    other = [*TOKENS]
    other[differs] = 7
    cache = Cache(make_request(TOKENS), sinks=0, window=9)
    assert len(cache.hit(make_request(other))) == differs // SIZE


# -- requests with another S or W ------------------------------------------------------------------


@pytest.mark.parametrize("window", [1, 3, 4, 9, 14])
@pytest.mark.parametrize("own_window", [1, 4, 9, 14])
@pytest.mark.parametrize(("default", "own"), [(4, 0), (0, 4), (4, 5), (5, 4), (1, 13), (13, 2)])
def test_blocks_are_shared_exactly_where_all_is_seen(
    window: int, own_window: int, default: int, own: int
) -> None:
    """A block is shared iff its last token lies below the smaller ``S + W``."""
    one, other = StreamPolicy(default, window), StreamPolicy(own, own_window)
    shared = min(sum(one), sum(other))
    plain, named = make_request(TOKENS), make_request(TOKENS, other, one)
    same = [a == b for a, b in zip(plain.block_hashes, named.block_hashes, strict=True)]
    assert same == [(i + 1) * SIZE <= shared for i in range(len(same))]


@pytest.mark.parametrize("own", [(0, 9), (2, 9), (9, 9), (5, 3), (0, 2), (13, 6)])
def test_a_hit_ends_where_they_part(own: tuple[int, int]) -> None:
    """The default's blocks serve another up to there, both ways round."""
    kept = StreamPolicy(*own)
    shared = min(sum(DEFAULT), sum(kept))
    plain, named = make_request(TOKENS), make_request(TOKENS, kept)
    assert len(Cache(plain, *DEFAULT).hit(named)) == shared // SIZE
    assert len(Cache(named, *DEFAULT).hit(plain)) == shared // SIZE


def test_those_who_keep_the_same_share_everything() -> None:
    """Two requests that pin the same span are like two of the default."""
    named = [make_request(TOKENS, StreamPolicy(9, 9)) for _ in range(2)]
    cache = Cache(named[0], *DEFAULT)
    assert cache.places(named[1]) == [0, 1, 2, *[None] * 5, 8, 9]


def test_a_smaller_window_reads_less_of_a_hit() -> None:
    """W = 4: of 40 tokens' blocks the last is read, which holds 37 to 39, and the sinks."""
    named = [make_request(TOKENS, StreamPolicy(5, 4)) for _ in range(2)]
    cache = Cache(named[0], *DEFAULT)
    assert cache.places(named[1]) == [0, 1, *[None] * 7, 9]


@pytest.mark.parametrize(
    ("one", "other"), [((8, 9), (9, 9)), ((8, 9), (8, 8)), ((8, 9), (9, 8)), ((5, 8), (5, 7))]
)
def test_two_that_keep_something_else_never_meet_beyond_the_default(
    one: tuple[int, int], other: tuple[int, int]
) -> None:
    """Even where both of their sums are larger: their hashes name what they keep."""
    requests = [make_request(TOKENS, StreamPolicy(*kept)) for kept in (one, other)]
    shared = min(sum(DEFAULT), sum(one), sum(other))
    assert len(Cache(requests[0], *DEFAULT).hit(requests[1])) == shared // SIZE


def test_the_lookup_pins_the_sinks_of_the_request() -> None:
    """``S`` travels on the hashes: with S = 9 the third block must be there, with 5 it need not."""
    cache = Cache(make_request(TOKENS, StreamPolicy(9, 9)), *DEFAULT)
    cache.evict(2)
    assert cache.places(make_request(TOKENS, StreamPolicy(9, 9))) == [0, 1]


def test_hashes_grow_with_the_output() -> None:
    """Hashing as tokens come gives what hashing at once gives, and keeps both on the list."""
    kept = StreamPolicy(2, 7)
    at_once, growing = make_request(TOKENS, kept), make_request(TOKENS[:6], kept)
    for token in TOKENS[6:]:
        growing.append_output_token_ids(token)
    assert isinstance(growing.block_hashes, SinkBlockHashes)
    assert growing.block_hashes.kept == kept
    assert growing.block_hashes == at_once.block_hashes


def test_a_salt_still_parts() -> None:
    """vLLM's own extra keys stay in the hash."""
    kept = StreamPolicy(2, 9)
    salted = make_request(TOKENS, kept, salt="tenant")
    assert not set(salted.block_hashes) & set(make_request(TOKENS, kept).block_hashes)
    assert salted.block_hashes[0] == make_request(TOKENS, salt="tenant").block_hashes[0]
