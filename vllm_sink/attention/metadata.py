"""Builds, once a step, what every layer's provider needs of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from typing_extensions import override
from vllm.v1.attention.backend import (
    AttentionCGSupport,
    AttentionMetadata,
    AttentionMetadataBuilder,
    CommonAttentionMetadata,
)

from vllm_sink.attention import providers
from vllm_sink.attention.paged_step import HostStep, PagedStep
from vllm_sink.attention.row_policies import RowPolicies, repeated
from vllm_sink.attention.tiles import Tile, TileCutter
from vllm_sink.cache.spec import SinkWindowSpec
from vllm_sink.config.kv_policy import policy_of

if TYPE_CHECKING:
    from vllm_sink.attention.flash_plan import FlashPlan


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
    """One for an engine: every layer is in one group."""

    #: Set by the worker once the model runner's batch exists.
    rows: RowPolicies | None = None

    def __init__(self, kv_cache_spec, layer_names, vllm_config, device) -> None:  # type: ignore[no-untyped-def]
        super().__init__(kv_cache_spec, layer_names, vllm_config, device)
        assert isinstance(kv_cache_spec, SinkWindowSpec)
        kv_policy = policy_of(vllm_config)
        assert kv_policy is not None
        self.spec = kv_cache_spec
        self.provider = kv_policy.provider
        self.cutter = TileCutter(kv_cache_spec.block_size)
        self.plan: FlashPlan | None = None
        if not providers.is_paged(self.provider):
            return
        scheduler = vllm_config.scheduler_config
        most = vllm_config.compilation_config.max_cudagraph_capture_size or 0
        rows = max(scheduler.max_num_seqs, most)
        # S and W of every row, [2, rows]: as they were last set, and the device's copy.
        self._kept_set = repeated(self.spec.default, rows)
        self._kept = torch.from_numpy(self._kept_set.copy()).to(device)
        if providers.needs_compact_tables(self.provider):
            from vllm_sink.attention.flash_plan import FlashPlan, FlashShape

            shape = FlashShape.of(kv_cache_spec, layer_names, vllm_config, rows)
            self.plan = FlashPlan(shape, device)

    @override
    @classmethod
    def get_cudagraph_support(cls, vllm_config: Any, kv_cache_spec: Any) -> AttentionCGSupport:
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
        """A graph is replayed for streams of any length, so it always adds sinks."""
        return self._build(common_attn_metadata, capture=True)

    def _build(self, step: CommonAttentionMetadata, capture: bool) -> SinkMetadata:
        assert step.positions is not None
        if not providers.is_paged(self.provider):
            starts = step.query_start_loc_cpu[: step.num_reqs + 1].tolist()
            tokens = starts[-1]
            lengths = self._lengths(step)
            tiles = self.cutter.cut(step, starts, lengths, *self._rows_kept(step).tolist())
            return SinkMetadata(tokens, step.slot_mapping[:tokens], tiles)
        tokens = step.num_actual_tokens
        kept = self._rows_kept(step)
        least_window = int(kept[1].min())
        sinks, windows = self._upload(kept)
        bound = step.seq_lens_cpu_upper_bound
        longest = step.max_seq_len if bound is None else int(bound.max())
        paged = PagedStep(
            num_reqs=step.num_reqs,
            num_tokens=tokens,
            max_query_len=step.max_query_len,
            query_start_loc=step.query_start_loc,
            seq_lens=step.seq_lens,
            block_table=step.block_table_tensor,
            positions=step.positions,
            sinks=sinks,
            windows=windows,
            block_size=self.spec.block_size,
            window_tokens=self.spec.window_tokens,
            past_window=capture or longest > least_window,
            one_window=least_window == self.spec.window_tokens,
        )
        if self.plan is not None:
            self.plan.fill(paged)
        if providers.needs_host(self.provider):
            paged.host = self._host(step, kept)
        return SinkMetadata(tokens, step.slot_mapping, paged=paged)

    def _rows_kept(self, step: CommonAttentionMetadata) -> np.ndarray:
        """Int32 [2, num_reqs]: ``S`` and ``W`` of each row."""
        if self.rows is None:
            return repeated(self.spec.default, step.num_reqs)
        return self.rows.kept(step)

    def _lengths(self, step: CommonAttentionMetadata) -> list[int]:
        """Bookkeeping lengths; exact on the host already, since nothing is speculated."""
        bound = step.seq_lens_cpu_upper_bound
        lengths: list[int] = (step.seq_lens if bound is None else bound)[: step.num_reqs].tolist()
        return lengths

    def _upload(self, kept: np.ndarray) -> torch.Tensor:
        """Rows change when requests come and go; from token to token nothing is copied."""
        n = kept.shape[1]
        if not np.array_equal(self._kept_set[:, :n], kept):
            self._kept_set[:, :n] = kept
            # Whole, so that it is one copy. Pinned by torch's caching allocator, which keeps it
            # until the copy is done.
            pinned = torch.from_numpy(self._kept_set).pin_memory()
            self._kept.copy_(pinned, non_blocking=True)
        return self._kept[:, :n]

    def _host(self, step: CommonAttentionMetadata, kept: np.ndarray) -> HostStep:
        return HostStep(
            query_lens=step.query_start_loc_cpu[: step.num_reqs + 1].diff().tolist(),
            seq_lens=self._lengths(step),
            sinks=kept[0].tolist(),
            windows=kept[1].tolist(),
        )
