"""Queries turned back by e(t), as they meet the sinks."""

from __future__ import annotations

# mypy: disable-error-code="no-untyped-def, untyped-decorator"
import triton
import triton.language as tl
from triton.language.extra import libdevice

# Radians of 2^-64 of a turn, see vllm_sink.rope.phase.
_UNIT: tl.constexpr = tl.constexpr(3.4061215800865545e-19)


@triton.jit
def partner_offset(channel, config: tl.constexpr):
    """int32 [padded_size]: distance from each channel to the other one of its pair."""
    if config.neox:
        return tl.where(channel < config.pairs, config.pairs, -config.pairs)
    return 1 - 2 * (channel % 2)


@triton.jit
def turn_back(query, partner, evicted, units_ptr, channel, config: tl.constexpr):
    """R(-e) q: float32 [M, padded_size].

    Args:
        query: [M, padded_size].
        partner: [M, padded_size], the other channel of each one's pair.
        evicted: int64 [M, 1], e(t) in tokens, or [1, 1] where one number holds for all.
        units_ptr: int64 [pairs], turn of each pair per token, in 2^-64 of a whole turn.
        channel: int32 [padded_size].
    """
    turns = channel < 2 * config.pairs
    if config.neox:
        pair = channel % config.pairs
        second = channel >= config.pairs
    else:
        pair = channel // 2
        second = channel % 2 == 1
    units = tl.load(units_ptr + pair, mask=turns, other=0)
    angle = (evicted * units[None, :]).to(tl.float32) * _UNIT
    if config.fast_trigonometry:
        # Good to 2^-20 between -pi and pi, where every angle is; the library's own functions carry
        # a reduction of large angles that costs more than the attention.
        cosine, sine = libdevice.fast_cosf(angle), libdevice.fast_sinf(angle)
    else:
        cosine, sine = tl.cos(angle), tl.sin(angle)
    sine = tl.where(second[None, :], -sine, sine)
    return query.to(tl.float32) * cosine + partner.to(tl.float32) * sine
