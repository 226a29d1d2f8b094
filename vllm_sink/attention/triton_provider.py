"""The ``triton`` provider: the fused kernel for every step, on any GPU that Triton knows."""

from __future__ import annotations

import torch

from vllm_sink.attention.kernels.launch import FusedKernel
from vllm_sink.attention.layer import LayerParams
from vllm_sink.attention.step import PagedStep


class TritonProvider:
    """One layer's attention; arguments as of ``FlashProvider``."""

    def __init__(self, layer: LayerParams, dtype: torch.dtype) -> None:
        self.fused = FusedKernel(layer, dtype)

    def attend(
        self,
        step: PagedStep,
        query: torch.Tensor,
        key_cache: torch.Tensor,
        value_cache: torch.Tensor,
        output: torch.Tensor,
    ) -> None:
        """Attention of a step; shapes as in ``FusedKernel.attend``."""
        self.fused.attend(step, query, key_cache, value_cache, output)
