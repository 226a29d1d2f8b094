"""One Triton kernel for attention over sinks and window: decode, prefill and the staircase.

A program holds the queries of one KV head for a run of one row's tokens, ``block_m`` of them (query
heads of a group times tokens). It goes over the window with the queries as they are and over the
sinks with the queries turned back by e(t); one running softmax takes both. Three ways to use it:

* Alone: both, the ``triton`` provider.
* ``splits > 1``: each row's keys, sinks and window together, are cut into parts of equal length (as
  in flash-decoding); the program that finishes last merges them, in the same launch, so that a
  small batch costs one launch.
* ``merge``: the sinks alone, on top of a result over the window and its log-sum-exp, which
  FlashAttention gives: the running softmax simply starts from it.

The query at bookkeeping index ``i`` sees the sinks ``j <= i - W``; in the chunk where they leave
the window one by one this is a staircase. ``M`` is ``config.block_m``, ``N`` is ``config.block_n``.
"""

from __future__ import annotations

from typing import Any, NamedTuple

# mypy: disable-error-code="no-untyped-def, untyped-decorator"
import triton
import triton.language as tl

from vllm_sink.attention.kernels.parts import is_last, merge_parts, store_part
from vllm_sink.attention.kernels.running_softmax import (
    LOG2_E,
    Cache,
    Scoring,
    Softmax,
    add_cached_keys,
    add_keys,
    empty_softmax,
    load_early_sinks,
)
from vllm_sink.attention.kernels.turn_back import partner_offset, turn_back


class Queries(NamedTuple):
    """Where a program's queries are.

    Attributes:
        index: int32 [M], bookkeeping index.
        token: int64 [M], which of the step's tokens.
        head: int32 [M].
        valid: bool [M], false for padding of the tile.
        channel: int32 [padded_size].
        in_head: bool [padded_size], false for padding of the head.
    """

    index: Any
    token: Any
    head: Any
    valid: Any
    channel: Any
    in_head: Any


class Span(NamedTuple):
    """Keys of the window that some query of a program sees, in one row.

    Attributes:
        window: int32, ``W`` of the row in this layer, in tokens.
        lowest, last: int32, bookkeeping index of the first key and of the last.
    """

    window: Any
    lowest: Any
    last: Any


@triton.jit
def _row_of(query_start_loc, program, num_rows, config: tl.constexpr):
    """Which row a program of a mixed step serves; a row has one program more than it may need."""
    low = 0
    high = num_rows
    while low < high:
        middle = (low + high) // 2
        first = tl.load(query_start_loc + middle) // config.block_q + middle
        if first <= program:
            low = middle + 1
        else:
            high = middle
    return low - 1


@triton.jit
def _locate(query_start_loc, program, num_rows, config: tl.constexpr):
    """What a program serves: its row, the row's first token, the first of the row's queries."""
    if config.decode:
        row = program
        start = tl.load(query_start_loc + row)
        first_query = 0
    else:
        row = _row_of(query_start_loc, program, num_rows, config)
        start = tl.load(query_start_loc + row)
        first_query = (program - (start // config.block_q + row)) * config.block_q
    return row, start, first_query


@triton.jit
def _queries(start, first_query, count, length, kv_head, config: tl.constexpr):
    """``Queries`` from number ``first_query`` of a row's ``count`` on.

    Args:
        start: the row's first token in the step.
        length: bookkeeping length of the row.
    """
    m = tl.arange(0, config.block_m)
    channel = tl.arange(0, config.padded_size)
    in_head = channel < config.head_size
    query = first_query + m // config.group
    valid = (m < config.block_q * config.group) & (query < count)
    head = kv_head * config.group + m % config.group
    token = (start + query).to(tl.int64)
    return Queries(length - count + query, token, head, valid, channel, in_head)


@triton.jit
def _offsets(queries, strides):
    """int64 [M, padded_size]: the queries' channels in a tensor with ``QueryStrides``."""
    offset = queries.token[:, None] * strides.token + queries.head[:, None] * strides.head
    offset += queries.channel[None, :]
    return offset


@triton.jit
def _in_query(queries):
    """bool [M, padded_size]: the channels that exist."""
    return queries.valid[:, None] & queries.in_head[None, :]


@triton.jit
def _load_query(query_ptr, strides, queries, config: tl.constexpr):
    """Queries [M, padded_size], and the other channel of each one's pair where RoPE needs it."""
    in_query = _in_query(queries)
    offset = _offsets(queries, strides)
    query = tl.load(query_ptr + offset, mask=in_query, other=0.0)
    partner = query
    if config.has_sinks and config.pairs > 0:
        turns = queries.channel < 2 * config.pairs
        across = partner_offset(queries.channel, config)
        partner = tl.load(
            query_ptr + offset + across[None, :], mask=in_query & turns[None, :], other=0.0
        )
    return query, partner


@triton.jit
def _load_softmax(output_ptr, stored, lse_ptr, stride_lse, queries, config: tl.constexpr):
    """``Softmax`` over the window, from its result at ``stored`` and its log-sum-exp."""
    lse = tl.load(
        lse_ptr + queries.head * stride_lse + queries.token, mask=queries.valid, other=0.0
    )
    return Softmax(
        lse * LOG2_E,
        tl.full([config.block_m], 1.0, tl.float32),
        tl.load(output_ptr + stored, mask=_in_query(queries), other=0.0).to(tl.float32),
    )


@triton.jit
def _over_window(
    softmax, query, queries, span, first_block, end_block, cache, scoring, config: tl.constexpr
):
    """``Softmax`` after the window's blocks of N keys in [first_block, end_block)."""
    for n in range(first_block, end_block):
        key = n * config.block_n + tl.arange(0, config.block_n)
        seen = ((key >= span.lowest) & (key <= span.last))[None, :]
        distance = queries.index[:, None] - key[None, :]
        if not config.decode:
            seen = seen & (distance >= 0) & (distance < span.window)
        key = tl.minimum(tl.maximum(key, span.lowest), span.last)
        softmax = add_cached_keys(
            softmax, query, key, seen, distance, cache, queries.channel, scoring, config
        )
    return softmax


@triton.jit
def _over_sinks(
    softmax,
    query,
    queries,
    place,
    window,
    seen_sinks,
    first_block,
    end_block,
    cache,
    scoring,
    config: tl.constexpr,
):
    """``Softmax`` after the sinks' blocks of N keys in [first_block, end_block).

    Args:
        query: turned back, [M, padded_size].
        place: int64 [M] or [1], cache position of the queries, p(t).
        window: ``W`` of the row, in tokens.
        seen_sinks: sinks that some query of the program sees.
    """
    for n in range(first_block, end_block):
        key = config.early_sinks + n * config.block_n + tl.arange(0, config.block_n)
        seen = (key < seen_sinks)[None, :] & (key[None, :] <= queries.index[:, None] - window)
        key = tl.minimum(key, seen_sinks - 1)
        distance = place[:, None] - key[None, :]
        softmax = add_cached_keys(
            softmax, query, key, seen, distance, cache, queries.channel, scoring, config
        )
    return softmax


@triton.jit(do_not_specialize=["num_rows", "stride_lse"])
def sink_attention(
    query_ptr,
    key_ptr,
    value_ptr,
    output_ptr,
    lse_ptr,
    partials,
    table_ptr,
    rows,
    units_ptr,
    slopes_ptr,
    scale,
    soft_cap,
    num_rows,
    query_strides,
    output_strides,
    cache_strides,
    stride_lse,
    stride_table,
    config: tl.constexpr,
):
    """Attention of a step's tokens over their sinks and windows.

    The grid is (kv heads, programs, splits); a decode step has a program a row, any other one for
    every ``block_q`` tokens and one more a row. Strides are in elements.

    Args:
        query_ptr: [tokens, heads, head_size], rotated at their true index.
        key_ptr, value_ptr: [blocks, block_size, kv heads, head_size], rotated likewise.
        output_ptr: [tokens, heads, head_size], written; with ``merge`` it holds the result over
            the window.
        lse_ptr: float32 [heads, tokens] with ``merge``: log-sum-exp of the window's scores, natural
            logarithm.
        partials: ``Partials`` with ``splits > 1``.
        table_ptr: int32 [rows, columns], blocks of the cache; evicted ones are not read.
        rows: ``Rows``.
        units_ptr: int64 [pairs], turn of each pair of channels per token, in 2^-64 of a whole turn.
        slopes_ptr: float32 [heads], ALiBi's, per token of distance.
        scale: factor on the products of queries and keys.
        soft_cap: bound of a score's magnitude.
        num_rows: rows of the step, padding included.
        query_strides, output_strides: ``QueryStrides``.
        cache_strides: ``CacheStrides``, of keys and of values.
        stride_lse: of a head in ``lse_ptr``.
        stride_table: of a row in ``table_ptr``.
        config: ``KernelConfig``.
    """
    # Programs that run together read neighbouring heads of the same tokens.
    kv_head = tl.program_id(0)
    row, start, first_query = _locate(rows.query_start_loc, tl.program_id(1), num_rows, config)
    count = tl.load(rows.query_start_loc + row + 1) - start
    # Padding of a CUDA graph, or the program that a row may not need.
    if first_query >= count:
        return
    length = tl.load(rows.seq_lens + row)
    window = tl.minimum(tl.load(rows.windows + row), config.layer_window)
    table_ptr += row.to(tl.int64) * stride_table
    key_ptr += kv_head * cache_strides.kv_head
    value_ptr += kv_head * cache_strides.kv_head
    cache = Cache(key_ptr, value_ptr, table_ptr, cache_strides)

    queries = _queries(start, first_query, count, length, kv_head, config)
    first_index = length - count + first_query
    last = tl.minimum(first_index + config.block_q, length) - 1
    span = Span(window, tl.maximum(first_index - window + 1, 0), last)
    first_block = span.lowest // config.block_n
    end_block = span.last // config.block_n + 1

    sink_blocks = 0
    seen_sinks = 0
    sinks = 0
    if config.has_sinks:
        sinks = tl.load(rows.sinks + row)
        seen_sinks = tl.maximum(tl.minimum(sinks, span.last - window + 1), 0)
        late_sinks = tl.maximum(seen_sinks - config.early_sinks, 0)
        sink_blocks = (late_sinks + config.block_n - 1) // config.block_n
    if config.merge:  # noqa: SIM102 (one is known when the kernel is compiled)
        # Nothing to add for queries that still hold the sinks in their window.
        if seen_sinks == 0:
            return

    # Blocks of keys are counted through the sinks into the window: [low, high) are this part's.
    part = tl.program_id(2)
    low = 0
    high = sink_blocks
    if not config.merge:
        high += end_block - first_block
    if config.splits > 1:
        blocks = high
        low = part * blocks // config.splits
        high = (part + 1) * blocks // config.splits

    query, partner = _load_query(query_ptr, query_strides, queries, config)
    slopes = tl.zeros([config.block_m], tl.float32)
    if config.has_alibi:
        slopes = tl.load(slopes_ptr + queries.head, mask=queries.valid, other=0.0)
    scoring = Scoring(scale, soft_cap, slopes)
    stored = _offsets(queries, output_strides)
    if config.merge:
        softmax = _load_softmax(output_ptr, stored, lse_ptr, stride_lse, queries, config)
    else:
        softmax = empty_softmax(config)

    if config.has_sinks:
        if config.decode:
            true_index = tl.load(rows.positions + start) + tl.zeros([1], tl.int64)
            own_sinks = tl.where(part == 0, seen_sinks, 0)
            early_keys, early_values = load_early_sinks(own_sinks, cache, queries.channel, config)
        else:
            true_index = tl.load(rows.positions + queries.token, mask=queries.valid, other=0)
        place = tl.minimum(true_index, sinks + window - 1)

    if not config.merge:
        softmax = _over_window(
            softmax,
            query,
            queries,
            span,
            first_block + tl.maximum(low - sink_blocks, 0),
            first_block + tl.maximum(high - sink_blocks, 0),
            cache,
            scoring,
            config,
        )

    if config.has_sinks:  # noqa: SIM102
        if (low < sink_blocks) | ((config.early_sinks > 0) & (part == 0) & (seen_sinks > 0)):
            turned = query
            if config.pairs > 0:
                evicted = (true_index - place)[:, None]
                turned = turn_back(query, partner, evicted, units_ptr, queries.channel, config)
                turned = turned.to(query.dtype)
            if config.early_sinks > 0:  # noqa: SIM102
                if part == 0:
                    early = tl.arange(0, config.early_sinks)
                    seen = (early < seen_sinks)[None, :]
                    distance = place[:, None] - early[None, :]
                    softmax = add_keys(
                        softmax, turned, early_keys, early_values, seen, distance, scoring, config
                    )
            softmax = _over_sinks(
                softmax,
                turned,
                queries,
                place,
                window,
                seen_sinks,
                low,
                tl.minimum(high, sink_blocks),
                cache,
                scoring,
                config,
            )

    if config.splits > 1:
        store_part(softmax, partials, part, row, queries, config)
        if not is_last(partials, row, kv_head, config):
            return
        softmax = merge_parts(partials, row, kv_head, queries, config)

    total = tl.where(queries.valid, softmax.total, 1.0)
    tl.store(
        output_ptr + stored,
        (softmax.result / total[:, None]).to(output_ptr.dtype.element_ty),
        mask=_in_query(queries),
    )
