"""Makes a layer's provider; each module is imported only where it was chosen."""

from __future__ import annotations

import torch

from vllm_sink.attention.layer import LayerParams
from vllm_sink.attention.providers import Provider
from vllm_sink.errors import UnsupportedError


def make(provider: str, layer: LayerParams, dtype: torch.dtype) -> Provider | None:
    """The provider of a layer; None for ``torch``, which takes tiles.

    Args:
        provider: its resolved name.
        layer: of the layer.
        dtype: of queries, keys and values.

    Raises:
        UnsupportedError: ``xformers`` cannot compute this layer, with the reason.
    """
    if provider == "torch":
        return None
    if provider == "triton":
        from vllm_sink.attention.kernels.launch import FusedKernel

        return FusedKernel(layer, dtype)
    if provider == "xformers":
        from vllm_sink.attention import xformers_provider

        reason = xformers_provider.unsupported(layer, dtype)
        if reason is not None:
            raise UnsupportedError(f"--sink-attention xformers: {reason}")
        return xformers_provider.XformersProvider(layer)
    from vllm_sink.attention.flash_provider import FlashProvider

    return FlashProvider(layer, dtype, provider)
