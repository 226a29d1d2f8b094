"""The frequencies of vLLM's rotary classes, for those whose scaling changes frequencies alone.

RoPE (Su et al., arXiv 2104.09864) turns pair ``i`` of a head by ``t * inv_freq[i]``. Linear,
Llama-3 and YaRN scaling only choose other ``inv_freq`` (YaRN also scales the amplitude), so the
score of two tokens still depends on their distance alone, on which the policy relies.
Scaling that depends on the sequence's length (dynamic NTK, LongRoPE) breaks that: refused.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from vllm.model_executor.layers.rotary_embedding import (
    LinearScalingRotaryEmbedding,
    Llama3RotaryEmbedding,
    RotaryEmbedding,
    YaRNScalingRotaryEmbedding,
)
from vllm.model_executor.layers.rotary_embedding.base import RotaryEmbeddingBase

from vllm_sink.errors import UnsupportedError


class Frequencies(NamedTuple):
    """What a rotation is made of.

    Attributes:
        inv_freq: float64 [rotary_dim / 2], radians per token.
        amplitude: factor on cos and sin (YaRN's mscale).
    """

    inv_freq: torch.Tensor
    amplitude: float


def frequencies(rotary: RotaryEmbeddingBase) -> Frequencies:
    """The frequencies of a vLLM rotary module.

    The float32 values that the model was built with, widened and not recomputed.

    Raises:
        UnsupportedError: a class whose angles are not ``t * inv_freq``.
    """
    kind = type(rotary)
    amplitude = 1.0
    if kind in (RotaryEmbedding, Llama3RotaryEmbedding):
        inv_freq = rotary._compute_inv_freq(rotary.base)
    elif kind is LinearScalingRotaryEmbedding:
        if len(rotary.scaling_factors) != 1:
            raise UnsupportedError(f"several linear RoPE scaling factors {rotary.scaling_factors}")
        inv_freq = rotary._compute_inv_freq(rotary.base).double() / rotary.scaling_factors[0]
    elif kind is YaRNScalingRotaryEmbedding:
        inv_freq = rotary._compute_inv_freq(rotary.scaling_factor)
        amplitude = rotary.mscale
    else:
        raise UnsupportedError(
            f"rotary embedding {kind.__name__}: its angles are not index times frequency"
        )
    return Frequencies(inv_freq.double().cpu(), amplitude)
