"""Exact angles for models that vLLM serves through Transformers (GPT-NeoX since vLLM 0.27).

There one rotary module at the top of the model passes cos and sin to every layer, which turns
queries and keys itself.
"""

from __future__ import annotations

import torch
from torch import nn

from vllm_sink.errors import UnsupportedError
from vllm_sink.rope.frequencies import Frequencies
from vllm_sink.rope.phase import angles
from vllm_sink.rope.rotary import ExactRotary

#: Transformers' rotary classes whose layers pair channels NeoX style and turn the first ones.
KNOWN = ("GPTNeoXRotaryEmbedding",)


class ExactCosSin(ExactRotary):
    """Replaces a Transformers rotary module: same call, angles exact at any index."""

    def forward(  # type: ignore[override]
        self, x: torch.Tensor, position_ids: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """cos and sin [batch, n, rotary_dim] in the dtype of ``x``, of ``position_ids`` [batch, n].

        The dtype is Transformers' own choice: in bf16 cos and sin are rounded, at any index alike.
        """
        cos, sin = angles(position_ids.flatten(), self.units)
        shape = (*position_ids.shape, -1)
        return (
            (torch.cat((cos, cos), -1) * self.amplitude).view(shape).to(x.dtype),
            (torch.cat((sin, sin), -1) * self.amplitude).view(shape).to(x.dtype),
        )


def exact(rotary: nn.Module, head_size: int) -> ExactCosSin:
    """The exact counterpart of a Transformers rotary module.

    Raises:
        UnsupportedError: a class that is not known to turn channels as ``ExactRotary`` does.
    """
    if type(rotary).__name__ not in KNOWN:
        raise UnsupportedError(f"rotary embedding {type(rotary).__name__} of Transformers")
    frequencies = Frequencies(rotary.inv_freq.double().cpu(), float(rotary.attention_scaling))
    return ExactCosSin(frequencies, head_size, is_neox_style=True)
