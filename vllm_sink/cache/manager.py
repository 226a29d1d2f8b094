"""Who owns which block: sinks pinned, the window rolling, the middle back to the pool.

::

    block   0        1       2 ..       k-1     k            last
            [ sinks ][ sinks ][ null ... null ][ window ... now ]
            pinned            recycled          held

A recycled block is replaced by the pool's null block, so block ``i`` stays at index ``i``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from typing_extensions import override
from vllm.v1.core.single_type_kv_cache_manager import SingleTypeKVCacheManager

from vllm_sink import policy
from vllm_sink.cache.hashing import SinkBlockHashes
from vllm_sink.cache.statistics import CacheCounts
from vllm_sink.policy import StreamPolicy

if TYPE_CHECKING:
    from vllm.v1.core.block_pool import BlockPool
    from vllm.v1.core.kv_cache_utils import KVCacheBlock


@dataclass
class Stream:
    """The manager's state of one request.

    Attributes:
        kept: ``S`` and ``W`` of the request.
        settled_tokens: computed by completed steps; a step in flight still reads its window.
        held: blocks that it holds now, shared ones included.
        hit_tokens: found in the prefix cache at its last admission.
        admitted: whether it has been given blocks since its last admission.
        waiting_tokens: tokens of its prompt that its segment has no room for yet.

    All counts of tokens are in bookkeeping indices, which a rollover lowers.
    """

    kept: StreamPolicy
    settled_tokens: int = 0
    held: int = 0
    hit_tokens: int = 0
    admitted: bool = False
    waiting_tokens: int = 0


class StreamSpec(Protocol):
    """What the manager uses of a layer's spec (``vllm_sink/cache/spec.py``)."""

    block_size: int
    window_tokens: int

    @property
    def default(self) -> StreamPolicy: ...

    def max_blocks(self, kept: StreamPolicy, in_flight_tokens: int, total_tokens: int) -> int: ...


class SinkWindowManager(SingleTypeKVCacheManager):
    """Blocks of all streams of one engine (vLLM: ``single_type_kv_cache_manager.py``)."""

    kv_cache_spec: StreamSpec

    def __init__(self, kv_cache_spec: StreamSpec, **kwargs: Any) -> None:
        super().__init__(kv_cache_spec, **kwargs)
        # Maximum of tokens scheduled and not settled; the scheduler sets the real value.
        self.max_in_flight_tokens = kv_cache_spec.window_tokens
        self.streams: dict[str, Stream] = {}
        self.counts = CacheCounts()

    # -- streams come and go --------------------------------------------------------------------

    def open_stream(self, request_id: str, kept: StreamPolicy) -> None:
        """Register a request before it is first scheduled."""
        self.streams[request_id] = Stream(kept)

    def close_stream(self, request_id: str) -> None:
        """Forget a finished request."""
        self.streams.pop(request_id, None)

    def stream(self, request_id: str) -> Stream:
        """The stream of a request; opened with the engine's policy if it is not registered."""
        if request_id not in self.streams:
            self.open_stream(request_id, self.kv_cache_spec.default)
        return self.streams[request_id]

    # -- admission ------------------------------------------------------------------------------

    def blocks_to_start(self, request_id: str, num_tokens: int) -> int:
        """The maximum number of blocks to prefill a request, if none of it is cached.

        Args:
            request_id: the request's.
            num_tokens: of its prompt; after a preemption, of its output as well.
        """
        stream = self.stream(request_id)
        total = num_tokens + stream.waiting_tokens
        in_flight = max(1, min(self.max_in_flight_tokens, total))
        return self.kv_cache_spec.max_blocks(stream.kept, in_flight, total)

    @override
    def get_num_blocks_to_allocate(
        self,
        request_id: str,
        num_tokens: int,
        new_computed_blocks: Sequence[KVCacheBlock],
        total_computed_tokens: int,
        num_local_computed_tokens: int,
        num_tokens_main_model: int,
        apply_admission_cap: bool = False,
        *later: Any,
        **named: Any,
    ) -> int:
        """Blocks to take from the pool now, or (admission) blocks that must be free.

        ``later`` and ``named`` take what other releases add: 0.32 has ``prefill_end``, 0.29 does
        not.
        """
        if not apply_admission_cap:
            return super().get_num_blocks_to_allocate(
                request_id,
                num_tokens,
                new_computed_blocks,
                total_computed_tokens,
                num_local_computed_tokens,
                num_tokens_main_model,
                apply_admission_cap,
                *later,
                **named,
            )
        # A block that another request holds costs nothing; a free one leaves the free queue.
        shared = sum(not b.is_null and b.ref_cnt > 0 for b in new_computed_blocks)
        return max(0, self.blocks_to_start(request_id, num_tokens) - shared)

    # -- blocks in, blocks out ------------------------------------------------------------------

    @override
    def add_local_computed_blocks(
        self,
        request_id: str,
        new_computed_blocks: Sequence[KVCacheBlock],
        num_local_computed_tokens: int,
        num_external_computed_tokens: int,
    ) -> None:
        """Take over the blocks of a prefix hit, sinks included.

        The base class cuts what a window skips off the front of a hit, the sinks included.
        """
        blocks = self.req_to_blocks[request_id]
        assert not blocks, "a prefix hit belongs to a request without blocks"
        live = [b for b in new_computed_blocks if not b.is_null]
        if self.enable_caching:
            self.block_pool.touch(live)
        blocks.extend(new_computed_blocks)
        self.num_cached_block[request_id] = len(blocks)
        stream = self.stream(request_id)
        stream.held += len(live)
        stream.hit_tokens = num_local_computed_tokens
        if live:
            pinned = policy.sink_blocks(stream.kept.sink_tokens, self.block_size)
            if len(blocks) <= pinned:
                self.counts.hits_within_sinks += 1
            else:
                self.counts.hits_past_sinks += 1

    @override
    def allocate_new_blocks(
        self, request_id: str, num_tokens: int, num_tokens_main_model: int
    ) -> list[KVCacheBlock]:
        new_blocks = super().allocate_new_blocks(request_id, num_tokens, num_tokens_main_model)
        if new_blocks:
            stream = self.stream(request_id)
            if not stream.admitted:
                stream.admitted = True
                self.counts.admitted += 1
            stream.held += len(new_blocks)
        return new_blocks

    @override
    def remove_skipped_blocks(
        self,
        request_id: str,
        processed_computed_tokens: int,
        num_prompt_tokens: int | None = None,
    ) -> None:
        """Recycle every whole block between the sinks and the window.

        ``processed_computed_tokens`` counts settled tokens only, so that a step in flight still
        finds its window.
        """
        stream = self.stream(request_id)
        stream.settled_tokens = processed_computed_tokens
        blocks = self.req_to_blocks.get(request_id)
        if not blocks:
            return
        first = policy.sink_blocks(stream.kept.sink_tokens, self.block_size)
        last = policy.window_block(
            processed_computed_tokens, stream.kept.window_tokens, self.block_size
        )
        freed: list[KVCacheBlock] = []
        # Backwards, up to the first block that an earlier call already recycled: O(new blocks).
        for i in range(min(last, len(blocks)) - 1, first - 1, -1):
            if blocks[i].is_null:
                break
            freed.append(blocks[i])
            blocks[i] = self._null_block
        if freed:
            self.block_pool.free_blocks(freed)
            stream.held -= len(freed)
            self.counts.recycled_blocks += len(freed)

    def drop_recycled(self, request_id: str) -> tuple[int, int]:
        """Remove the recycled blocks from the stream's list; return their old range [first, end).

        The tokens of those blocks leave every count of the stream. The last full block stays even
        where the window is smaller, because the next block's hash is chained to its hash.
        """
        stream = self.stream(request_id)
        blocks = self.req_to_blocks[request_id]
        first = end = policy.sink_blocks(stream.kept.sink_tokens, self.block_size)
        last = stream.settled_tokens // self.block_size - 1
        while end < min(last, len(blocks)) and blocks[end].is_null:
            end += 1
        del blocks[first:end]
        # Where the engine caches prefixes, every recycled block had been cached.
        cached = self.num_cached_block.get(request_id, 0)
        self.num_cached_block[request_id] = max(0, cached - (end - first))
        tokens = (end - first) * self.block_size
        stream.settled_tokens -= tokens
        stream.hit_tokens -= tokens
        return first, end

    def feed(self, request_id: str, tokens: int) -> None:
        """Count ``tokens`` of the waiting prompt as part of the stream's bookkeeping."""
        self.stream(request_id).waiting_tokens -= tokens

    def get_num_common_prefix_blocks(self, running_request_id: str) -> int:
        """0: no cascade attention, because no stream keeps its prefix (called until vLLM 0.31)."""
        return 0

    @override
    def pop_blocks_for_free(self, request_id: str) -> list[KVCacheBlock]:
        if request_id in self.streams:
            stream = self.streams[request_id]
            stream.held = stream.settled_tokens = stream.hit_tokens = 0
            stream.admitted = False
        return super().pop_blocks_for_free(request_id)

    # -- prefix cache ---------------------------------------------------------------------------

    @override
    @classmethod
    def find_longest_cache_hit(
        cls,
        block_hashes: Any,
        max_length: int,
        kv_cache_group_ids: list[int],
        block_pool: BlockPool,
        kv_cache_spec: Any,
        drop_eagle_block: bool,
        alignment_tokens: int,
        dcp_world_size: int = 1,
        pcp_world_size: int = 1,
    ) -> tuple[tuple[list[KVCacheBlock], ...], int]:
        """The longest prefix whose sinks and last window are both still cached.

        A hit of ``n`` blocks is usable by the token at ``n * block_size`` if every block that it
        reads is there; what lies between sinks and window is not checked.
        """
        spec: StreamSpec = kv_cache_spec
        size = spec.block_size
        kept = block_hashes.kept if isinstance(block_hashes, SinkBlockHashes) else spec.default
        max_blocks = min(max_length // size, len(block_hashes))
        found: dict[int, list[KVCacheBlock] | None] = {}

        def cached(i: int) -> list[KVCacheBlock] | None:
            if i not in found:
                found[i] = block_pool.get_cached_block(block_hashes[i], kv_cache_group_ids)
            return found[i]

        pinned = policy.sink_blocks(kept.sink_tokens, size)
        head = 0
        while head < min(pinned, max_blocks) and cached(head) is not None:
            head += 1
        length = max_blocks if head == min(pinned, max_blocks) else head
        while length > 0:
            start = policy.window_block(length * size, kept.window_tokens, size)
            missing = next((i for i in range(length - 1, start - 1, -1) if cached(i) is None), None)
            if missing is None:
                break
            # Any longer prefix that still reads block `missing` fails on it as well.
            length = missing

        held = {i for i in range(length) if i < pinned or i >= start} if length else set()
        null = block_pool.null_block
        hit: tuple[list[KVCacheBlock], ...] = tuple(
            [found[i][group] if i in held else null for i in range(length)]  # type: ignore[index]
            for group in range(len(kv_cache_group_ids))
        )
        return hit, length * size
