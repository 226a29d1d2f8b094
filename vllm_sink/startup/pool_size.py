"""Blocks and bytes of the KV pool, before any engine exists."""

from __future__ import annotations

from typing import Any

from vllm_sink import policy
from vllm_sink.config.kv_policy import KVPolicy
from vllm_sink.errors import PolicyError


def kv_bytes_per_block(vllm_config: Any) -> int:
    """Bytes of one block over all layers of one worker."""
    model, parallel = vllm_config.model_config, vllm_config.parallel_config
    return int(
        model.get_num_layers(parallel)
        * model.get_num_kv_heads(parallel)
        * 2
        * model.get_head_size()
        * vllm_config.cache_config.block_size
        * model.dtype.itemsize
    )


def stream_blocks(vllm_config: Any, kv_policy: KVPolicy, in_flight_tokens: int) -> int:
    """The maximum number of blocks of one stream with ``in_flight_tokens`` in flight."""
    return policy.max_blocks(
        kv_policy.sink_tokens,
        kv_policy.window,
        in_flight_tokens,
        vllm_config.model_config.max_model_len,
        vllm_config.cache_config.block_size,
    )


def known_pool_bytes(vllm_config: Any) -> int | None:
    """Bytes of the KV pool where the user named them; None where vLLM will measure."""
    cache = vllm_config.cache_config
    if cache.num_gpu_blocks_override is not None:
        return int(cache.num_gpu_blocks_override * kv_bytes_per_block(vllm_config))
    return None if cache.kv_cache_memory_bytes is None else int(cache.kv_cache_memory_bytes)


def require_known_room(vllm_config: Any, kv_policy: KVPolicy) -> None:
    """Refuse a window that the pool cannot hold, where the pool's size is known already.

    Raises:
        PolicyError: naming the window and the largest one that fits.
    """
    pool = known_pool_bytes(vllm_config)
    if pool is None:
        return
    size = kv_bytes_per_block(vllm_config)
    in_flight = vllm_config.max_in_flight_tokens
    need = stream_blocks(vllm_config, kv_policy, in_flight) + 1  # vLLM keeps the null block
    if need * size > pool:
        block = vllm_config.cache_config.block_size
        sinks = policy.sink_blocks(kv_policy.sink_tokens, block)
        fits = (pool // size - 2 - sinks) * block - in_flight + 1
        hint = (
            f"1 to {fits}, or a larger KV pool"
            if fits > 0
            else "none in this pool; take a larger one, or a smaller --max-num-batched-tokens"
        )
        raise PolicyError(
            "--window-tokens",
            kv_policy.window,
            f"{hint}; one stream needs {need * size / 2**20:.1f} MiB of KV and the pool has "
            f"{pool / 2**20:.1f} MiB",
        )
