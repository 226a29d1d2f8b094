"""How a token's place enters its attention score: by rotation (RoPE) or by a bias (ALiBi).

Angles and slopes are computed in float64 and rounded once. float32 angles alone would shift
log-probabilities by 8e-4 within 3,200 tokens.
"""

from __future__ import annotations

import math
from typing import Any, Protocol

import torch
from torch import Tensor


class Positions(Protocol):
    """A position scheme.

    place: vectors x [n, heads, head_dim] put at positions [n].
    bias: what is added to the scaled scores of a query at `query_position`: [heads, 1 or n].
    """

    def place(self, x: Tensor, positions: Tensor) -> Tensor: ...

    def bias(self, positions: Tensor, query_position: int) -> Tensor | float: ...


class Rotary:
    """RoPE on the first 2·len(frequencies) dimensions of a head; the rest passes unrotated.

    frequencies: angle per position, float64 [rotary_dim / 2].
    magnitude: YaRN's factor on cos and sin alike, so that it enters each score squared.
    interleaved: pairs are (0, 1), (2, 3) … as in GPT-J, not (0, d/2), (1, d/2 + 1) … as in NeoX.
    """

    def __init__(
        self, frequencies: Tensor, magnitude: float = 1.0, interleaved: bool = False
    ) -> None:
        self.frequencies = frequencies
        self.magnitude = magnitude
        self.interleaved = interleaved
        self._cos_sin = torch.empty(2, 0, 1, len(frequencies), dtype=torch.float64)

    def place(self, x: Tensor, positions: Tensor) -> Tensor:
        cos, sin = self._table(int(positions.max()) + 1)[:, positions].to(x.dtype)
        rotary_dim = 2 * len(self.frequencies)
        rotated, passed = x[..., :rotary_dim], x[..., rotary_dim:]
        if self.interleaved:
            a, b = rotated[..., ::2], rotated[..., 1::2]
            turned = torch.stack((a * cos - b * sin, b * cos + a * sin), dim=-1).flatten(-2)
        else:
            a, b = rotated.chunk(2, dim=-1)
            turned = torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)
        return torch.cat((turned, passed), dim=-1)

    def _table(self, length: int) -> Tensor:
        """cos and sin at positions [0, length) or beyond: [2, ≥ length, 1, rotary_dim / 2]."""
        if self._cos_sin.shape[1] < length:
            positions = torch.arange(2 * length, dtype=torch.float64)
            angles = positions[:, None, None] * self.frequencies
            self._cos_sin = torch.stack((angles.cos(), angles.sin())) * self.magnitude
        return self._cos_sin

    def bias(self, positions: Tensor, query_position: int) -> Tensor | float:
        return 0.0


class Alibi:
    """ALiBi (arXiv 2108.12409): head h adds -slope_h · (distance from query to key)."""

    def __init__(self, slopes: Tensor) -> None:
        self.slopes = slopes  # float64 [heads]

    def place(self, x: Tensor, positions: Tensor) -> Tensor:
        return x

    def bias(self, positions: Tensor, query_position: int) -> Tensor | float:
        return -self.slopes[:, None] * (query_position - positions)


def bloom_slopes(heads: int, scale: float = 1.0) -> Tensor:
    """Slopes as BLOOM and Falcon order them: the power of two below `heads`, then the odd ones of
    the next power of two."""
    below = 2 ** math.floor(math.log2(heads))
    slopes = [2 ** (-8 * (i + 1) / below) for i in range(below)]
    slopes += [2 ** (-8 * (i + 1) / (2 * below)) for i in range(0, 2 * (heads - below), 2)]
    return torch.tensor(slopes, dtype=torch.float64) * scale


def mpt_slopes(heads: int, bias_max: int) -> Tensor:
    """Slopes as MPT orders them: of the power of two above `heads`, the even ones, then the odd."""
    above = 2 ** math.ceil(math.log2(heads))
    slopes = [2 ** (-bias_max * (i + 1) / above) for i in range(above)]
    if above != heads:
        slopes = (slopes[1::2] + slopes[::2])[:heads]
    return torch.tensor(slopes, dtype=torch.float64)


def rotary(parameters: dict[str, Any], head_dim: int) -> Rotary:
    """RoPE from Hugging Face's `rope_parameters`. Scaling rules that depend on the length of the
    stream (dynamic NTK, LongRoPE) have no meaning under the policy and are refused."""
    rotary_dim = int(head_dim * parameters.get("partial_rotary_factor", 1.0))
    exponents = torch.arange(0, rotary_dim, 2, dtype=torch.float64) / rotary_dim
    frequencies = parameters["rope_theta"] ** -exponents
    kind = parameters.get("rope_type", "default")
    if kind == "default":
        return Rotary(frequencies)
    if kind == "linear":
        return Rotary(frequencies / parameters["factor"])
    if kind == "llama3":
        return Rotary(_llama3(frequencies, parameters))
    if kind == "yarn":
        return Rotary(
            _yarn(frequencies, parameters, rotary_dim),
            parameters.get("attention_factor") or 0.1 * math.log(parameters["factor"]) + 1.0,
        )
    raise ValueError(f"no reference for rope_type {kind!r}")


def _llama3(frequencies: Tensor, parameters: dict[str, Any]) -> Tensor:
    """Llama 3.1: divide the low frequencies by the factor, keep the high ones, blend between."""
    low, high = parameters["low_freq_factor"], parameters["high_freq_factor"]
    turns = parameters["original_max_position_embeddings"] * frequencies / (2 * math.pi)
    kept = ((turns - low) / (high - low)).clamp(0, 1)
    return kept * frequencies + (1 - kept) * frequencies / parameters["factor"]


def _yarn(frequencies: Tensor, parameters: dict[str, Any], rotary_dim: int) -> Tensor:
    """YaRN (arXiv 2309.00071, section 3.2): keep the pairs that turn often within the original
    context, interpolate those that turn rarely, ramp between."""

    def pair_with_turns(turns: float) -> float:
        context = parameters["original_max_position_embeddings"]
        wavelength = math.log(context / (turns * 2 * math.pi))
        return rotary_dim * wavelength / (2 * math.log(parameters["rope_theta"]))

    first = max(math.floor(pair_with_turns(parameters.get("beta_fast") or 32)), 0)
    last = min(math.ceil(pair_with_turns(parameters.get("beta_slow") or 1)), rotary_dim - 1)
    pairs = torch.arange(rotary_dim // 2, dtype=torch.float64)
    interpolated = ((pairs - first) / max(last - first, 0.001)).clamp(0, 1)
    return frequencies * (1 - interpolated) + frequencies / parameters["factor"] * interpolated
