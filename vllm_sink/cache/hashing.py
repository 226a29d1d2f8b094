"""Block hashes that tell apart what different sinks make of the same tokens.

A block's keys and values are a function of its token prefix and of what each of its tokens could
see. With ``W`` fixed, tokens below ``min(S1, S2) + W`` see everything under both ``S1`` and ``S2``;
beyond, what they see differs. So two requests share blocks up to there and no further.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from vllm.v1.core.kv_cache_utils import generate_block_hash_extra_keys, hash_block_tokens

from vllm_sink.segments import base_of

if TYPE_CHECKING:
    from vllm.v1.core.kv_cache_utils import BlockHash
    from vllm.v1.request import Request


class SinkBlockHashes(list[Any]):
    """The block hashes of one request, with the number of tokens that it pins.

    vLLM looks a prefix up by this list alone (``find_longest_cache_hit``), so what the lookup must
    know of the request travels on it.
    """

    def __init__(self, sink_tokens: int) -> None:
        super().__init__()
        self.sink_tokens = sink_tokens


def sink_block_hasher(
    block_size: int, hash_fn: Callable[[Any], bytes], sink_tokens: int, shared_tokens: int
) -> Callable[[Request], list[BlockHash]]:
    """A request's block hasher whose hashes name ``sink_tokens`` from ``shared_tokens`` on.

    The counterpart of ``get_request_block_hasher`` (``vllm/v1/core/kv_cache_utils.py``) for text.

    Args:
        block_size: tokens in a hashed block.
        hash_fn: the engine's hash function.
        sink_tokens: ``S`` of the request.
        shared_tokens: below this index a block is the same for any ``S``.
    """

    def hash_new_blocks(request: Request) -> list[BlockHash]:
        start = len(request.block_hashes) * block_size
        parent = request.block_hashes[-1] if request.block_hashes else None
        hashes: list[BlockHash] = []
        while (end := start + block_size) <= request.num_tokens:
            extra, _ = generate_block_hash_extra_keys(request, start, end, 0)
            if base_of(request) + end > shared_tokens:
                extra = (*(extra or ()), ("sink_tokens", sink_tokens))
            parent = hash_block_tokens(hash_fn, parent, request.all_token_ids[start:end], extra)
            hashes.append(parent)
            start = end
        return hashes

    return hash_new_blocks
