"""Builds a ``PagedStep``: what every provider but ``torch`` needs of a step."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from vllm.config import VllmConfig
from vllm.v1.attention.backend import CommonAttentionMetadata

from vllm_sink.attention import providers
from vllm_sink.attention.paged_step import HostStep, PagedStep
from vllm_sink.attention.row_policies import repeated
from vllm_sink.cache.spec import SinkWindowSpec
from vllm_sink.policy import StreamPolicy

if TYPE_CHECKING:
    from vllm_sink.attention.flash_plan import FlashPlan


class DevicePolicies:
    """``S`` and ``W`` of each row, on the device at a fixed address for CUDA graphs.

    Args:
        default: of every row at first.
        max_rows: of any step, padding included.
        device: of the copy.
    """

    def __init__(self, default: StreamPolicy, max_rows: int, device: torch.device) -> None:
        self._host = repeated(default, max_rows)
        self._device = torch.from_numpy(self._host.copy()).to(device)

    def upload(self, policies: np.ndarray) -> torch.Tensor:
        """``policies``, int32 [2, rows], on the device.

        Rows change when requests come and go; from token to token nothing is copied.
        """
        rows = policies.shape[1]
        if not np.array_equal(self._host[:, :rows], policies):
            self._host[:, :rows] = policies
            # Whole, so that it is one copy. Pinned by torch's caching allocator, which keeps it
            # until the copy is done.
            pinned = torch.from_numpy(self._host).pin_memory()
            self._device.copy_(pinned, non_blocking=True)
        return self._device[:, :rows]


class PagedStepBuilder:
    """Builds the steps of an engine.

    Args:
        spec: of the cache.
        provider: its resolved name.
        max_rows: of any step, padding included.
        device: of the steps.
        plan: for FlashAttention, where the provider needs compact tables.
    """

    def __init__(
        self,
        spec: SinkWindowSpec,
        provider: str,
        max_rows: int,
        device: torch.device,
        plan: FlashPlan | None = None,
    ) -> None:
        self.spec = spec
        self.provider = provider
        self.plan = plan
        self._policies = DevicePolicies(spec.default, max_rows, device)

    @classmethod
    def of(
        cls,
        spec: SinkWindowSpec,
        provider: str,
        layer_names: list[str],
        vllm_config: VllmConfig,
        device: torch.device,
    ) -> PagedStepBuilder:
        """Of an engine whose layers exist."""
        graph_rows = vllm_config.compilation_config.max_cudagraph_capture_size or 0
        max_rows = max(vllm_config.scheduler_config.max_num_seqs, graph_rows)
        if not providers.needs_compact_tables(provider):
            return cls(spec, provider, max_rows, device)
        # FlashAttention and Triton are imported only where they are used.
        from vllm_sink.attention.flash_plan import FlashPlan, FlashShape

        shape = FlashShape.of(spec, layer_names, vllm_config, max_rows)
        return cls(spec, provider, max_rows, device, FlashPlan(shape, device))

    def build(
        self, step: CommonAttentionMetadata, policies: np.ndarray, *, capture: bool
    ) -> PagedStep:
        """One step.

        Args:
            step: vLLM's description of it, with positions.
            policies: int32 [2, num_reqs], ``S`` and ``W`` of each row.
            capture: it is captured in a CUDA graph, which is replayed for streams of any length.
        """
        assert step.positions is not None
        min_window = int(policies[1].min())
        sinks, windows = self._policies.upload(policies)
        bound = step.seq_lens_cpu_upper_bound
        max_len = step.max_seq_len if bound is None else int(bound.max())
        paged = PagedStep(
            num_reqs=step.num_reqs,
            num_tokens=step.num_actual_tokens,
            max_query_len=step.max_query_len,
            query_start_loc=step.query_start_loc,
            seq_lens=step.seq_lens,
            block_table=step.block_table_tensor,
            positions=step.positions,
            sinks=sinks,
            windows=windows,
            block_size=self.spec.block_size,
            window_tokens=self.spec.window_tokens,
            past_window=capture or max_len > min_window,
            one_window=min_window == self.spec.window_tokens,
        )
        if self.plan is not None:
            self.plan.fill(paged)
        if providers.needs_host(self.provider):
            paged.host = host_step(step, policies)
        return paged


def host_lengths(step: CommonAttentionMetadata) -> list[int]:
    """Bookkeeping length of each row; exact on the host, because nothing is speculated."""
    bound = step.seq_lens_cpu_upper_bound
    lengths: list[int] = (step.seq_lens if bound is None else bound)[: step.num_reqs].tolist()
    return lengths


def host_step(step: CommonAttentionMetadata, policies: np.ndarray) -> HostStep:
    """The rows of a step as plain numbers; ``policies`` is int32 [2, num_reqs]."""
    return HostStep(
        query_lens=step.query_start_loc_cpu[: step.num_reqs + 1].diff().tolist(),
        seq_lens=host_lengths(step),
        sinks=policies[0].tolist(),
        windows=policies[1].tolist(),
    )
