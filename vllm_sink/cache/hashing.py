"""Block hashes that depend on sinks and window wherever keys and values do.

A block's keys and values are a function of its token prefix and of what each of its tokens could
see. Under ``S`` and ``W`` tokens below ``S + W`` see everything before them; beyond, what they see
depends on both. So two requests share blocks below the smaller of their sums, and no further.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from vllm.v1.core.kv_cache_utils import generate_block_hash_extra_keys, hash_block_tokens

from vllm_sink.policy import StreamPolicy
from vllm_sink.segments import base_of

if TYPE_CHECKING:
    from vllm.v1.core.kv_cache_utils import BlockHash
    from vllm.v1.request import Request


class SinkBlockHashes(list[Any]):
    """The block hashes of one request, with its ``S`` and ``W``.

    vLLM looks a prefix up by this list alone (``find_longest_cache_hit``), so both travel with it.
    """

    def __init__(self, kept: StreamPolicy) -> None:
        super().__init__()
        self.kept = kept


def sink_block_hasher(
    block_size: int, hash_fn: Callable[[Any], bytes], kept: StreamPolicy, shared_tokens: int
) -> Callable[[Request], list[BlockHash]]:
    """A request's block hasher whose hashes name ``S`` and ``W`` from ``shared_tokens`` on.

    The counterpart of ``get_request_block_hasher`` (``vllm/v1/core/kv_cache_utils.py``) for text.

    Args:
        block_size: tokens in a hashed block.
        hash_fn: the engine's hash function.
        kept: ``S`` and ``W`` of the request.
        shared_tokens: below this index a block is the same as under the engine's ``S`` and ``W``.
    """

    def hash_new_blocks(request: Request) -> list[BlockHash]:
        start = len(request.block_hashes) * block_size
        parent = request.block_hashes[-1] if request.block_hashes else None
        hashes: list[BlockHash] = []
        while (end := start + block_size) <= request.num_tokens:
            extra, _ = generate_block_hash_extra_keys(request, start, end, 0)
            if base_of(request) + end > shared_tokens:
                extra = (*(extra or ()), ("sink_tokens, window_tokens", *kept))
            parent = hash_block_tokens(hash_fn, parent, request.all_token_ids[start:end], extra)
            hashes.append(parent)
            start = end
        return hashes

    return hash_new_blocks
