"""Builds, once a step, what every layer's provider needs of it."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from typing_extensions import override
from vllm.config import VllmConfig
from vllm.v1.attention.backend import (
    AttentionCGSupport,
    AttentionMetadata,
    AttentionMetadataBuilder,
    CommonAttentionMetadata,
)
from vllm.v1.kv_cache_interface import KVCacheSpec

from vllm_sink.attention import providers
from vllm_sink.attention.paged_builder import PagedStepBuilder, host_lengths
from vllm_sink.attention.paged_step import PagedStep
from vllm_sink.attention.row_policies import RowPolicies, repeated
from vllm_sink.attention.tiles import Tile, TileCutter
from vllm_sink.cache.spec import SinkWindowSpec
from vllm_sink.config.kv_policy import policy_of


@dataclass
class SinkMetadata(AttentionMetadata):
    """What a layer needs of a step.

    Attributes:
        num_actual_tokens: tokens of the step.
        slot_mapping: int64 [num_actual_tokens], where the new keys and values go.
        tiles: the step's queries, each in exactly one tile; of the ``torch`` provider.
        paged: the step's rows; of every other provider.
    """

    num_actual_tokens: int
    slot_mapping: torch.Tensor
    tiles: list[Tile] = field(default_factory=list)
    paged: PagedStep | None = None


class SinkMetadataBuilder(AttentionMetadataBuilder[SinkMetadata]):
    """One for an engine: every layer is in one group.

    Args:
        kv_cache_spec: a ``SinkWindowSpec``.
        layer_names: of the layers, which exist.
        vllm_config: of the engine, which has a policy.
        device: of the model.
    """

    #: Set by the worker once the model runner's batch exists.
    rows: RowPolicies | None = None

    def __init__(
        self,
        kv_cache_spec: KVCacheSpec,
        layer_names: list[str],
        vllm_config: VllmConfig,
        device: torch.device,
    ) -> None:
        super().__init__(kv_cache_spec, layer_names, vllm_config, device)
        assert isinstance(kv_cache_spec, SinkWindowSpec)
        kv_policy = policy_of(vllm_config)
        assert kv_policy is not None
        self.spec = kv_cache_spec
        self.cutter = TileCutter(kv_cache_spec.block_size)
        self.paged: PagedStepBuilder | None = None
        if providers.is_paged(kv_policy.provider):
            self.paged = PagedStepBuilder.of(
                kv_cache_spec, kv_policy.provider, layer_names, vllm_config, device
            )

    @override
    @classmethod
    def get_cudagraph_support(
        cls, vllm_config: VllmConfig, kv_cache_spec: KVCacheSpec
    ) -> AttentionCGSupport:
        kv_policy = policy_of(vllm_config)
        assert kv_policy is not None
        if providers.in_cuda_graphs(kv_policy.provider):
            return AttentionCGSupport.UNIFORM_SINGLE_TOKEN_DECODE
        return AttentionCGSupport.NEVER

    @override
    def build(
        self,
        common_prefix_len: int,
        common_attn_metadata: CommonAttentionMetadata,
        fast_build: bool = False,
    ) -> SinkMetadata:
        return self._build(common_attn_metadata, capture=False)

    @override
    def build_for_cudagraph_capture(
        self, common_attn_metadata: CommonAttentionMetadata
    ) -> SinkMetadata:
        return self._build(common_attn_metadata, capture=True)

    def _build(self, step: CommonAttentionMetadata, capture: bool) -> SinkMetadata:
        policies = self._policies(step)
        if self.paged is None:
            return self._in_tiles(step, policies)
        paged = self.paged.build(step, policies, capture=capture)
        return SinkMetadata(step.num_actual_tokens, step.slot_mapping, paged=paged)

    def _in_tiles(self, step: CommonAttentionMetadata, policies: np.ndarray) -> SinkMetadata:
        """For the ``torch`` provider; ``policies`` is int32 [2, num_reqs]."""
        assert step.positions is not None
        starts = step.query_start_loc_cpu[: step.num_reqs + 1].tolist()
        num_tokens = starts[-1]
        tiles = self.cutter.cut(step, starts, host_lengths(step), *policies.tolist())
        return SinkMetadata(num_tokens, step.slot_mapping[:num_tokens], tiles)

    def _policies(self, step: CommonAttentionMetadata) -> np.ndarray:
        """Int32 [2, num_reqs]: ``S`` and ``W`` of each row."""
        if self.rows is None:
            return repeated(self.spec.default, step.num_reqs)
        return self.rows.kept(step)
