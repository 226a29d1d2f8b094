"""The running softmax of a program over blocks of keys (Milakov and Gimelshein, arXiv 1805.02867).

``M`` is the number of the program's queries, ``N`` that of the keys of a step.
"""

from __future__ import annotations

from typing import Any, NamedTuple

# mypy: disable-error-code="no-untyped-def, untyped-decorator"
import triton
import triton.language as tl

LOG2_E: tl.constexpr = tl.constexpr(1.4426950408889634)


class Softmax(NamedTuple):
    """What is known after some keys.

    Attributes:
        maximum: float32 [M], the largest score, times log2(e); -inf before the first key.
        total: float32 [M], sum of the weights ``2^(score - maximum)``.
        result: float32 [M, padded_size], sum of the values times their weights.
    """

    maximum: Any
    total: Any
    result: Any


class Scoring(NamedTuple):
    """How a product of query and key becomes a score.

    Attributes:
        scale: float32, factor on the product.
        soft_cap: float32, bound of the score's magnitude.
        slopes: float32 [M], ALiBi's, per token of distance.
    """

    scale: Any
    soft_cap: Any
    slopes: Any


class Cache(NamedTuple):
    """Keys and values of one row and KV head.

    Attributes:
        key_ptr, value_ptr: [blocks, block_size, head_size].
        table_ptr: int32 [columns], the row's blocks.
        strides: ``CacheStrides``.
    """

    key_ptr: Any
    value_ptr: Any
    table_ptr: Any
    strides: Any


@triton.jit
def empty_softmax(config: tl.constexpr):
    """``Softmax`` before the first key."""
    return Softmax(
        tl.full([config.block_m], float("-inf"), tl.float32),
        tl.zeros([config.block_m], tl.float32),
        tl.zeros([config.block_m, config.padded_size], tl.float32),
    )


@triton.jit
def add_keys(softmax, query, keys, values, seen, distance, scoring, config: tl.constexpr):
    """``Softmax`` after more keys.

    Args:
        softmax: before them.
        query: [M, padded_size].
        keys: [padded_size, N].
        values: [N, padded_size].
        seen: bool, [M, N] or [1, N]: the keys that a query sees.
        distance: int [M, N], tokens from key to query, for ALiBi.
        scoring: ``Scoring``.
    """
    score = tl.dot(query, keys, input_precision=config.precision) * scoring.scale
    if config.has_soft_cap:
        # tanh by exp, which overflows towards the right end.
        cap = scoring.soft_cap
        score = cap * (1.0 - 2.0 / (tl.exp(2.0 * score / cap) + 1.0))
    if config.has_alibi:
        score -= scoring.slopes[:, None] * distance.to(tl.float32)
    score = tl.where(seen, score * LOG2_E, float("-inf"))
    maximum = tl.maximum(softmax.maximum, tl.max(score, 1))
    # A query that has seen no key yet must not subtract infinities.
    reference = tl.where(maximum == float("-inf"), 0.0, maximum)
    weight = tl.exp2(score - reference[:, None])
    decay = tl.exp2(softmax.maximum - reference)
    result = softmax.result * decay[:, None]
    result = tl.dot(weight.to(values.dtype), values, result, input_precision=config.precision)
    return Softmax(maximum, softmax.total * decay + tl.sum(weight, 1), result)


@triton.jit
def add_cached_keys(
    softmax, query, key, seen, distance, cache, channel, scoring, config: tl.constexpr
):
    """``Softmax`` after the keys at bookkeeping indices ``key``.

    Args:
        softmax, query, seen, distance, scoring: as in ``add_keys``.
        key: int32 [N]. All of them exist, seen or not, so that loads need no mask over keys.
        cache: ``Cache``.
        channel: int32 [padded_size].
    """
    block = tl.load(cache.table_ptr + key // config.block_size).to(tl.int64)
    slot = block * cache.strides.block + (key % config.block_size) * cache.strides.slot
    if config.head_size == config.padded_size:
        keys = tl.load(cache.key_ptr + slot[None, :] + channel[:, None])
        values = tl.load(cache.value_ptr + slot[:, None] + channel[None, :])
    else:
        in_head = channel < config.head_size
        keys = tl.load(
            cache.key_ptr + slot[None, :] + channel[:, None], mask=in_head[:, None], other=0.0
        )
        values = tl.load(
            cache.value_ptr + slot[:, None] + channel[None, :], mask=in_head[None, :], other=0.0
        )
    return add_keys(softmax, query, keys, values, seen, distance, scoring, config)


@triton.jit
def load_early_sinks(seen_sinks, cache, channel, config: tl.constexpr):
    """Keys [padded_size, early_sinks] and values [early_sinks, padded_size] of a row's first sinks.

    Zero from ``seen_sinks`` on, where a key may not exist.
    """
    key = tl.arange(0, config.early_sinks)
    in_head = channel < config.head_size
    exists = key < seen_sinks
    block = tl.load(cache.table_ptr + key // config.block_size, mask=exists, other=0).to(tl.int64)
    slot = block * cache.strides.block + (key % config.block_size) * cache.strides.slot
    keys = tl.load(
        cache.key_ptr + slot[None, :] + channel[:, None],
        mask=exists[None, :] & in_head[:, None],
        other=0.0,
    )
    values = tl.load(
        cache.value_ptr + slot[:, None] + channel[None, :],
        mask=exists[:, None] & in_head[None, :],
        other=0.0,
    )
    return keys, values
