"""The attention backend that vLLM sees (``vllm/v1/attention/backend.py``)."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from typing_extensions import override
from vllm.config import get_current_vllm_config
from vllm.utils.torch_utils import canonicalize_singleton_dim_strides
from vllm.v1.attention.backend import (
    AttentionBackend,
    AttentionImpl,
    AttentionType,
    MultipleOf,
)
from vllm.v1.kv_cache_interface import AttentionSpec, KVCacheLayout

from vllm_sink.attention import cpu_decode, provider_factory
from vllm_sink.attention.layer import LayerParams
from vllm_sink.attention.metadata import SinkMetadata, SinkMetadataBuilder
from vllm_sink.attention.providers import Provider
from vllm_sink.attention.torch_provider import attend
from vllm_sink.cache.spec import SinkWindowSpec
from vllm_sink.config.kv_policy import KVPolicy, policy_of
from vllm_sink.errors import UnsupportedError


def current_policy() -> KVPolicy:
    """The policy of the engine that is being built in this process."""
    kv_policy = policy_of(get_current_vllm_config())
    assert kv_policy is not None, "the sink backend belongs to engines with a policy"
    return kv_policy


def store(
    key: torch.Tensor, value: torch.Tensor, cache: torch.Tensor, slot_mapping: torch.Tensor
) -> None:
    """Store keys and values with plain tensors.

    Args:
        key, value: [tokens, num_kv_heads, head_size].
        cache: [slots, num_kv_heads, 2 * head_size].
        slot_mapping: int64 [<= tokens]; -1 for padding, which is not stored. (As an index it would
            be the pool's last slot, which may be some stream's.)
    """
    stored = slot_mapping >= 0
    rows = torch.cat((key, value), -1)[: slot_mapping.shape[0]][stored]
    cache[slot_mapping[stored]] = rows.to(cache.dtype)


class SinkAttentionImpl(AttentionImpl[SinkMetadata]):
    """One layer's attention under the policy."""

    def __init__(
        self,
        num_heads: int,
        head_size: int,
        scale: float,
        num_kv_heads: int | None = None,
        alibi_slopes: list[float] | None = None,
        sliding_window: int | None = None,
        kv_cache_dtype: str = "auto",
        logits_soft_cap: float | None = None,
        attn_type: str = AttentionType.DECODER,
        kv_sharing_target_layer_name: str | None = None,
        **extra: Any,
    ) -> None:
        if attn_type != AttentionType.DECODER:
            raise UnsupportedError(f"attention type {attn_type}: only decoder layers have a stream")
        if kv_sharing_target_layer_name is not None:
            raise UnsupportedError("layers that share another layer's KV cache")
        if extra:
            raise UnsupportedError(f"attention with {', '.join(sorted(extra))}")
        kv_policy = current_policy()
        # A layer whose model gives it a sliding window between full ones (Gemma) stays as it was
        # trained: no sinks, and at most that window. A uniform one (Mistral) gives way to W.
        trained_window = None if kv_policy.replaces_sliding_window else sliding_window
        self.num_heads = num_heads
        self.head_size = head_size
        self.scale = float(scale)
        self.num_kv_heads = num_kv_heads or num_heads
        self.kv_cache_dtype = kv_cache_dtype
        self.layer = LayerParams(
            num_heads=num_heads,
            num_kv_heads=self.num_kv_heads,
            head_size=head_size,
            scale=self.scale,
            window_tokens=min(kv_policy.window, trained_window or kv_policy.window),
            sinks=trained_window is None,
            alibi_slopes=(
                None if alibi_slopes is None else torch.tensor(alibi_slopes, dtype=torch.float32)
            ),
            soft_cap=logits_soft_cap or 0.0,
        )
        self.provider_name = kv_policy.provider
        self._provider: Provider | None = None
        self._paged: torch.Tensor | None = None
        self._slots = torch.empty(0)

    def provider(self, dtype: torch.dtype) -> Provider:
        """The layer's provider, made when its rotary module is bound."""
        if self._provider is None:
            self._provider = provider_factory.make(self.provider_name, self.layer, dtype)
            assert self._provider is not None
        return self._provider

    def _by_slot(self, kv_cache: torch.Tensor) -> torch.Tensor:
        """[slots, num_kv_heads, 2 * head_size]: a view, made once because every step needs it.

        Slots are contiguous in memory under the layout that the backend asks for.
        """
        if self._paged is not kv_cache:
            self._paged, self._slots = kv_cache, kv_cache.transpose(1, 2).flatten(0, 1)
        return self._slots

    def do_kv_cache_update(
        self,
        layer: Any,
        key: torch.Tensor,
        value: torch.Tensor,
        kv_cache: torch.Tensor,
        slot_mapping: torch.Tensor,
    ) -> None:
        """Store the step's keys and values, as vLLM's own backends do.

        Args:
            layer: the vLLM layer.
            key, value: [tokens, num_kv_heads, head_size].
            kv_cache: [blocks, num_kv_heads, block_size, 2 * head_size], blocks and slots outermost
                in memory.
            slot_mapping: int64 [<= tokens]; -1 for padding, which is not stored.
        """
        if kv_cache.device.type == "cuda":
            from vllm.v1.attention.backends.fa_utils import reshape_and_cache_flash

            key_cache, value_cache = kv_cache.transpose(1, 2).split(self.head_size, -1)
            scales = (layer._k_scale, layer._v_scale)
            reshape_and_cache_flash(
                key, value, key_cache, value_cache, slot_mapping, self.kv_cache_dtype, *scales
            )
            return
        cache = self._by_slot(kv_cache)
        if cpu_decode.store(key, value, cache, slot_mapping):
            return
        store(key, value, cache, slot_mapping)

    @override
    def forward(
        self,
        layer: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        kv_cache: torch.Tensor,
        attn_metadata: SinkMetadata | None,
        output: torch.Tensor,
        output_scale: torch.Tensor | None = None,
        output_block_scale: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Attend; the step's keys and values are stored already.

        Args:
            layer: the vLLM layer; unused, because quantised caches are refused.
            query: [tokens, num_heads, head_size], rotated at their true index.
            key, value: [tokens, num_kv_heads, head_size].
            kv_cache: [blocks, num_kv_heads, block_size, 2 * head_size], blocks and slots outermost
                in memory.
            attn_metadata: of the step; None in a warm-up.
            output: [tokens, num_heads, head_size], written in place.
            output_scale, output_block_scale: fused output quantisation, which is refused.
        """
        if output_scale is not None or output_block_scale is not None:
            raise UnsupportedError("fused output quantisation")
        if attn_metadata is None:
            return output
        if self.layer.alibi_slopes is not None and self.layer.alibi_slopes.device != query.device:
            self.layer.alibi_slopes = self.layer.alibi_slopes.to(query.device)
        if attn_metadata.paged is not None:
            tokens = attn_metadata.num_actual_tokens
            # FlashAttention 3 reads through TMA, which checks the stride of a dimension of one.
            key_cache, value_cache = (
                canonicalize_singleton_dim_strides(part)
                for part in kv_cache.transpose(1, 2).split(self.head_size, -1)
            )
            self.provider(query.dtype).attend(
                attn_metadata.paged, query[:tokens], key_cache, value_cache, output[:tokens]
            )
            return output
        cache = self._by_slot(kv_cache)
        for tile in attn_metadata.tiles:
            attend(self.layer, tile, query, cache, output)
        return output


class SinkAttentionBackend(AttentionBackend):
    """Keys and values in vLLM's paged cache; which pages, and how they are read, by the policy."""

    supported_dtypes: ClassVar[list[torch.dtype]] = [torch.float16, torch.bfloat16, torch.float32]
    supported_kv_cache_dtypes: ClassVar[list[Any]] = ["auto", "float16", "bfloat16"]
    #: Stored apart from the attention, where vLLM can fuse it and CUDA graphs hold it.
    forward_includes_kv_cache_update: bool = False

    @override
    @staticmethod
    def get_name() -> str:
        # vLLM looks this name up in its enum of backends.
        return "CUSTOM"

    @override
    @staticmethod
    def get_impl_cls() -> type[SinkAttentionImpl]:
        return SinkAttentionImpl

    @override
    @staticmethod
    def get_builder_cls() -> type[SinkMetadataBuilder]:
        return SinkMetadataBuilder

    @override
    @staticmethod
    def get_supported_kernel_block_sizes(kv_cache_spec: Any = None) -> list[int | MultipleOf]:
        return [MultipleOf(1)]

    @override
    @classmethod
    def supported_kv_cache_layouts(cls) -> tuple[KVCacheLayout, ...]:
        return (KVCacheLayout.LBNHC,)

    @override
    @classmethod
    def supports_sliding_window(cls) -> bool:
        return True

    @override
    @classmethod
    def customize_spec(cls, spec: AttentionSpec) -> AttentionSpec:
        """A layer's spec under the policy: the same for every layer, so one group of blocks."""
        kv_policy = current_policy()
        return SinkWindowSpec(
            block_size=spec.block_size,
            num_kv_heads=spec.num_kv_heads,
            head_size=spec.head_size,
            head_size_v=spec.head_size_v,
            dtype=spec.dtype,
            kv_quant_mode=spec.kv_quant_mode,
            sink_tokens=kv_policy.sink_tokens,
            window_tokens=kv_policy.window,
        )
