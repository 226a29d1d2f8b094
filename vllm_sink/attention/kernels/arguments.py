"""The fused kernel's arguments in groups, and what it is compiled for.

Triton takes tuples as arguments: a group costs what its members cost. On the host a member is a
tensor or a number, in the kernel a pointer or a scalar. ``KernelConfig`` is a tuple too, not a
dataclass: vLLM's monitor of compilations makes Triton write constants as JSON.
"""

from __future__ import annotations

from typing import NamedTuple

import torch


class Rows(NamedTuple):
    """The rows of a step: one stream's tokens each.

    Attributes:
        query_start_loc: int32 [rows + 1], where the tokens of each row begin.
        seq_lens: int32 [rows], bookkeeping length in tokens, this step included.
        positions: int64 [tokens], true index of each token.
        sinks: int32 [rows], ``S``.
        windows: int32 [rows], ``W``.
    """

    query_start_loc: torch.Tensor
    seq_lens: torch.Tensor
    positions: torch.Tensor
    sinks: torch.Tensor
    windows: torch.Tensor


class Partials(NamedTuple):
    """Partial results of rows that are cut into parts; shared by layers, which run in turn.

    Attributes:
        results: float32 [rows, heads, splits, padded_size], each part's result.
        lse: float32 [rows, heads, splits], log-sum-exp of its scores, base 2.
        arrived: int32 [rows, kv heads], parts that are stored; zero between launches.
    """

    results: torch.Tensor
    lse: torch.Tensor
    arrived: torch.Tensor


class QueryStrides(NamedTuple):
    """Strides of a tensor [tokens, heads, head_size], in elements; channels are contiguous."""

    token: int
    head: int


class CacheStrides(NamedTuple):
    """Strides of a cache [blocks, block_size, kv heads, head_size], in elements; likewise."""

    block: int
    slot: int
    kv_head: int


class KernelConfig(NamedTuple):
    """What a kernel is compiled for.

    Attributes:
        layer_window: window of the layer in tokens; a row's ``W`` holds where it is smaller.
        group: query heads of a KV head.
        head_size: channels of a head.
        padded_size: the same, rounded up to a power of two.
        block_m: queries of a program: tokens times heads of a group, padding included.
        block_q: tokens of a program.
        block_n: keys of one iteration.
        block_size: tokens of a block of the cache.
        pairs: pairs of channels that RoPE turns; 0 without RoPE.
        neox: channel ``c`` is paired with ``c + pairs``, not ``2 c`` with ``2 c + 1``.
        has_alibi: scores have ALiBi's bias.
        has_soft_cap: scores are capped.
        has_sinks: the layer sees sinks.
        merge: the window is in the output already, only sinks are added.
        splits: parts that a row's keys are cut into.
        decode: every row has one token.
        early_sinks: sinks that are loaded before the window and attended to after it: in a decode
            step the window must not wait for the loads of a few sinks.
        precision: of matrix products, ``ieee`` or ``tf32``.
        fast_trigonometry: the GPU's approximate sine and cosine; not in Triton's interpreter.
    """

    layer_window: int
    group: int
    head_size: int
    padded_size: int
    block_m: int
    block_q: int
    block_n: int
    block_size: int
    pairs: int
    neox: bool
    has_alibi: bool
    has_soft_cap: bool
    has_sinks: bool
    merge: bool
    splits: int
    decode: bool
    early_sinks: int
    precision: str
    fast_trigonometry: bool
