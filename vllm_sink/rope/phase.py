"""Angles in fixed point: exact at any int64 index, without a table.

A pair of channels turns by ``t * f`` radians, and only the fraction of a whole turn matters. In
units of 2^-64 of a turn, the angle of one token is a 64-bit integer, the angle of token ``t`` is
``t`` times that integer, and integer multiplication drops whole turns because it wraps at 2^64. The
error is at most t / 2^65 of a turn: 10^-7 radians at t = 5 * 10^11. In float32 the same product is
wrong by 0.014 radians at t = 10^6 and by 0.28 at 1.6 * 10^7, and vLLM's table of cos and sin ends
at the model's context.

One multiplication of two integers, one conversion: it fuses into whatever reads it, on a CPU and on
a GPU, and negative indices turn the other way.
"""

from __future__ import annotations

import math
from decimal import Decimal, localcontext

import torch

_PI = Decimal("3.14159265358979323846264338327950288419716939937510582097494")
_TURN = 1 << 64

#: Radians of one unit.
UNIT = math.tau / _TURN


def units_per_token(inv_freq: torch.Tensor) -> torch.Tensor:
    """int64 [n]: how far each pair turns from a token to the next, in units of 2^-64 of a turn.

    Args:
        inv_freq: float64 [n], radians per token; each double is taken as the fraction that it is.
    """
    with localcontext() as context:
        context.prec = 80
        per_radian = Decimal(_TURN) / (2 * _PI)
        units = [int((Decimal(f) * per_radian).to_integral_value()) for f in inv_freq.tolist()]
    # As int64 counts them: the upper half of a turn is negative.
    wrapped = [(u + _TURN // 2) % _TURN - _TURN // 2 for u in units]
    return torch.tensor(wrapped, dtype=torch.int64)


def angles(positions: torch.Tensor, units: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """cos and sin, float32 [n, pairs], at integer ``positions`` [n] (negative too).

    Args:
        positions: of any integer dtype.
        units: int64 [pairs], of ``units_per_token``.
    """
    turned = (positions.to(torch.int64)[:, None] * units[None, :]).to(torch.float32) * UNIT
    return turned.cos(), turned.sin()
