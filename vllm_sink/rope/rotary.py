"""A rotary module without a table: exact angles for any int64 index (``phase``)."""

from __future__ import annotations

import torch
from torch import nn

from vllm_sink.rope.frequencies import Frequencies
from vllm_sink.rope.phase import angles, units_per_token


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, neox_style: bool) -> torch.Tensor:
    """Turn the first ``2 * cos.shape[-1]`` channels of ``x`` [n, heads, head_size], in float32.

    Args:
        x: queries or keys.
        cos, sin: float32 [n, rotary_dim / 2].
        neox_style: pairs are (i, i + rotary_dim / 2); otherwise (2i, 2i + 1) as in GPT-J.
    """
    half = cos.shape[-1]
    cos, sin = cos[:, None], sin[:, None]
    turned, rest = x[..., : 2 * half].float(), x[..., 2 * half :]
    if neox_style:
        a, b = turned[..., :half], turned[..., half:]
        turned = torch.cat((a * cos - b * sin, b * cos + a * sin), -1)
    else:
        a, b = turned[..., 0::2], turned[..., 1::2]
        turned = torch.stack((a * cos - b * sin, b * cos + a * sin), -1).flatten(-2)
    return torch.cat((turned, rest.float()), -1) if rest.shape[-1] else turned


class ExactRotary(nn.Module):
    """Replaces a vLLM rotary module in one layer; same call, no table.

    Args:
        frequencies: of the module that it replaces.
        head_size: channels of a head; those past the rotary ones pass through.
        is_neox_style: how channels pair up.
    """

    units: torch.Tensor

    def __init__(self, frequencies: Frequencies, head_size: int, is_neox_style: bool) -> None:
        super().__init__()
        units = units_per_token(frequencies.inv_freq)
        self.register_buffer("units", units, persistent=False)
        #: Rotaries with the same key turn alike.
        self.key = tuple(units.tolist())
        self.amplitude = frequencies.amplitude
        self.head_size = head_size
        self.is_neox_style = is_neox_style

    def forward(
        self, positions: torch.Tensor, query: torch.Tensor, key: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Rotate ``query`` [n, heads * head_size] and ``key`` at their true index [n]."""
        positions = positions.flatten()
        cos, sin = angles(positions, self.units)
        if self.amplitude != 1.0:
            cos, sin = cos * self.amplitude, sin * self.amplitude
        return self._turn(query, cos, sin), None if key is None else self._turn(key, cos, sin)

    def _turn(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        heads = x.reshape(cos.shape[0], -1, self.head_size)
        return rotate(heads, cos, sin, self.is_neox_style).to(x.dtype).view(x.shape)

    def turn_back(self, query: torch.Tensor, evicted: torch.Tensor) -> torch.Tensor:
        """``R(-e) q``: bring a query [n, heads, head_size] back by ``evicted`` [n] tokens.

        The query includes the amplitude already.
        """
        cos, sin = angles(-evicted, self.units)
        return rotate(query, cos, sin, self.is_neox_style)
