"""What vLLM must know about a layer's cache: its page, and how many pages a stream can hold."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from typing_extensions import override
from vllm.v1.kv_cache_interface import AttentionSpec
from vllm.v1.kv_cache_spec_registry import KVCacheSpecRegistry

from vllm_sink import policy
from vllm_sink.cache.manager import SinkWindowManager
from vllm_sink.policy import StreamPolicy

if TYPE_CHECKING:
    from vllm.config import VllmConfig


@dataclass(frozen=True, kw_only=True)
class SinkWindowSpec(AttentionSpec):
    """Sinks pinned, a window rolling (vLLM: ``vllm/v1/kv_cache_interface.py``).

    Neither a ``SlidingWindowSpec``, below whose window everything is freed, sinks too, nor a
    ``FullAttentionSpec``, whose manager keeps every block.

    Attributes:
        sink_tokens: ``S`` of a request that does not name its own.
        window_tokens: ``W`` likewise; also the maximum that a request may name.
    """

    sink_tokens: int
    window_tokens: int

    @property
    def default(self) -> StreamPolicy:
        """``S`` and ``W`` of a request that names neither."""
        return StreamPolicy(self.sink_tokens, self.window_tokens)

    def max_blocks(self, kept: StreamPolicy, in_flight_tokens: int, total_tokens: int) -> int:
        """The maximum number of blocks that one stream can hold."""
        return policy.max_blocks(*kept, in_flight_tokens, total_tokens, self.block_size)

    @override
    def max_memory_usage_bytes(self, vllm_config: VllmConfig) -> int:
        """KV bytes of one layer that one stream of any length can hold."""
        blocks = self.max_blocks(
            self.default,
            vllm_config.max_in_flight_tokens,
            vllm_config.model_config.max_model_len,
        )
        return blocks * self.page_size_bytes


def register() -> None:
    """Make the spec known to vLLM's registry. Safe to call again."""
    # The registry fills itself with the built-in specs only while it is empty.
    KVCacheSpecRegistry._ensure_registered()
    KVCacheSpecRegistry.register(
        SinkWindowSpec, SinkWindowManager, uniform_type_base_spec=SinkWindowSpec
    )


# On import: the engine core gets a spec by unpickling it, which imports this module first.
register()
