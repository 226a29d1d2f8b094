"""One Triton kernel for attention over sinks and window: decode, prefill and the staircase.

A program holds the queries of one KV head for a run of one row's tokens, ``BLOCK_M`` rows of them
(query heads of a group times tokens). It goes over the sinks with the queries turned back by e(t),
then over the window with the queries as they are, and one running softmax (Milakov and Gimelshein,
arXiv 1805.02867) takes both. Three ways to use it:

* ``WINDOW``: both parts, the ``triton`` provider.
* ``WINDOW`` and ``SPLITS > 1``: each row's keys, sinks and window together, are cut into parts of
  equal length (as in flash-decoding); the program that finishes last merges them, in the same
  launch, so that a small batch costs one launch.
* ``MERGE``: the sinks alone, on top of a result over the window and its log-sum-exp, which
  FlashAttention gives: the running softmax simply starts from it.

Which sinks the query at bookkeeping index ``i`` sees: those with ``j <= i - W``; in the chunk where
they leave the window one by one this is a staircase.
"""

from __future__ import annotations

# mypy: disable-error-code="no-untyped-def, untyped-decorator"
import triton
import triton.language as tl
from triton.language.extra import libdevice

_LOG2_E: tl.constexpr = tl.constexpr(1.4426950408889634)
# Radians of 2^-64 of a turn, see vllm_sink.rope.phase.
_UNIT: tl.constexpr = tl.constexpr(3.4061215800865545e-19)


@triton.jit
def _row_of(query_start_loc, program, num_rows, BLOCK_Q: tl.constexpr):
    """Which row a program of a mixed step serves; a row has one program more than it may need."""
    low = 0
    high = num_rows
    while low < high:
        middle = (low + high) // 2
        first = tl.load(query_start_loc + middle) // BLOCK_Q + middle
        if first <= program:
            low = middle + 1
        else:
            high = middle
    return low - 1


@triton.jit
def _partner(channel, PAIRS: tl.constexpr, NEOX: tl.constexpr):
    """How far from each channel the other one of its pair lies."""
    if NEOX:
        return tl.where(channel < PAIRS, PAIRS, -PAIRS)
    return 1 - 2 * (channel % 2)


@triton.jit
def _turned_back(
    query,
    other,
    evicted,
    units_ptr,
    channel,
    PAIRS: tl.constexpr,
    NEOX: tl.constexpr,
    FAST: tl.constexpr,
):
    """R(-e) q in float32, from each channel and the other one of its pair.

    ``evicted`` is int64 [M, 1], or [1, 1] where one number holds for all.
    """
    turns = channel < 2 * PAIRS
    if NEOX:
        pair = channel % PAIRS
        second = channel >= PAIRS
    else:
        pair = channel // 2
        second = channel % 2 == 1
    units = tl.load(units_ptr + pair, mask=turns, other=0)
    angle = (evicted * units[None, :]).to(tl.float32) * _UNIT
    if FAST:
        # Good to 2^-20 between -pi and pi, where every angle is; the library's own functions carry
        # a reduction of large angles that costs more than the attention.
        cosine, sine = libdevice.fast_cosf(angle), libdevice.fast_sinf(angle)
    else:
        cosine, sine = tl.cos(angle), tl.sin(angle)
    sine = tl.where(second[None, :], -sine, sine)
    return query.to(tl.float32) * cosine + other.to(tl.float32) * sine


@triton.jit
def _softmax_step(
    query,
    keys,
    values,
    top,
    total,
    result,
    seen,
    distance,
    slopes,
    scale,
    soft_cap,
    ALIBI: tl.constexpr,
    SOFT_CAP: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Take ``keys`` [D, N] and ``values`` [N, D] into the running softmax; ``seen`` is [M, N]."""
    score = tl.dot(query, keys, input_precision=PRECISION) * scale
    if SOFT_CAP:
        # tanh by exp, which overflows towards the right end.
        score = soft_cap * (1.0 - 2.0 / (tl.exp(2.0 * score / soft_cap) + 1.0))
    if ALIBI:
        score -= slopes[:, None] * distance.to(tl.float32)
    score = tl.where(seen, score * _LOG2_E, float("-inf"))
    new_top = tl.maximum(top, tl.max(score, 1))
    # A row of queries that has seen no key yet must not subtract infinities.
    level = tl.where(new_top == float("-inf"), 0.0, new_top)
    weight = tl.exp2(score - level[:, None])
    shrink = tl.exp2(top - level)
    result = result * shrink[:, None]
    result = tl.dot(weight.to(values.dtype), values, result, input_precision=PRECISION)
    return new_top, total * shrink + tl.sum(weight, 1), result


@triton.jit
def _block_of_keys(
    query,
    top,
    total,
    result,
    key,
    seen,
    distance,
    slopes,
    key_ptr,
    value_ptr,
    table_ptr,
    stride_block,
    stride_slot,
    scale,
    soft_cap,
    channel,
    D: tl.constexpr,
    D_PADDED: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    ALIBI: tl.constexpr,
    SOFT_CAP: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Read keys ``key`` [N] and take them into the running softmax.

    Every key exists, whether it is seen or not, so that loads need no mask.
    """
    block = tl.load(table_ptr + key // BLOCK_SIZE).to(tl.int64)
    slot = block * stride_block + (key % BLOCK_SIZE) * stride_slot
    if D == D_PADDED:
        keys = tl.load(key_ptr + slot[None, :] + channel[:, None])
        values = tl.load(value_ptr + slot[:, None] + channel[None, :])
    else:
        in_head = channel < D
        keys = tl.load(key_ptr + slot[None, :] + channel[:, None], mask=in_head[:, None], other=0.0)
        values = tl.load(
            value_ptr + slot[:, None] + channel[None, :], mask=in_head[None, :], other=0.0
        )
    return _softmax_step(
        query,
        keys,
        values,
        top,
        total,
        result,
        seen,
        distance,
        slopes,
        scale,
        soft_cap,
        ALIBI,
        SOFT_CAP,
        PRECISION,
    )


@triton.jit(do_not_specialize=["num_rows", "stride_lse"])
def sink_attention(
    query_ptr,  # [tokens, heads, D]
    key_ptr,  # [blocks, BLOCK_SIZE, kv heads, D]
    value_ptr,  # as key_ptr
    output_ptr,  # [tokens, heads, D]; with MERGE the result over the window
    lse_ptr,  # MERGE: float32 [heads, tokens], natural log
    part_ptr,  # SPLITS > 1: float32 [rows, heads, SPLITS, D_PADDED]
    part_lse_ptr,  # SPLITS > 1: float32 [rows, heads, SPLITS], base 2
    arrived_ptr,  # SPLITS > 1: int32 [rows, kv heads], all zero between launches
    table_ptr,  # int32 [rows, columns]
    query_start_loc,  # int32 [rows + 1]
    seq_lens,  # int32 [rows]
    positions,  # int64 [tokens]
    sinks_ptr,  # int32 [rows]
    windows_ptr,  # int32 [rows]
    units_ptr,  # int64 [PAIRS]
    slopes_ptr,  # float32 [heads]
    scale,
    soft_cap,
    num_rows,
    stride_query_token,
    stride_query_head,
    stride_output_token,
    stride_output_head,
    stride_block,
    stride_slot,
    stride_kv_head,
    stride_lse,
    stride_table,
    layer_window: tl.constexpr,
    GROUP: tl.constexpr,
    D: tl.constexpr,
    D_PADDED: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    PAIRS: tl.constexpr,
    NEOX: tl.constexpr,
    ALIBI: tl.constexpr,
    SOFT_CAP: tl.constexpr,
    SINKS: tl.constexpr,
    WINDOW: tl.constexpr,
    MERGE: tl.constexpr,
    SPLITS: tl.constexpr,
    DECODE: tl.constexpr,
    PRECISION: tl.constexpr,
    FAST: tl.constexpr,
):
    # Programs that run together read neighbouring heads of the same tokens.
    kv_head = tl.program_id(0)
    program = tl.program_id(1)
    if DECODE:
        row = program
        start = tl.load(query_start_loc + row)
        first_query = 0
    else:
        row = _row_of(query_start_loc, program, num_rows, BLOCK_Q)
        start = tl.load(query_start_loc + row)
        first_query = (program - (start // BLOCK_Q + row)) * BLOCK_Q
    count = tl.load(query_start_loc + row + 1) - start
    # Padding of a CUDA graph, or the program that a row may not need.
    if first_query >= count:
        return
    length = tl.load(seq_lens + row)
    window = tl.minimum(tl.load(windows_ptr + row), layer_window)
    table_ptr += row.to(tl.int64) * stride_table
    key_ptr += kv_head * stride_kv_head
    value_ptr += kv_head * stride_kv_head

    m = tl.arange(0, BLOCK_M)
    channel = tl.arange(0, D_PADDED)
    in_head = channel < D
    query_of = first_query + m // GROUP
    valid = (m < BLOCK_Q * GROUP) & (query_of < count)
    head = kv_head * GROUP + m % GROUP
    token = (start + query_of).to(tl.int64)
    index = length - count + query_of
    first_index = length - count + first_query
    last_index = tl.minimum(first_index + BLOCK_Q, length) - 1
    lowest = tl.maximum(first_index - window + 1, 0)
    begin = lowest // BLOCK_N
    end = last_index // BLOCK_N + 1

    # In decode the first sinks are read before the window and met after it, by the first part: a
    # few keys must not keep the window waiting.
    FIRST: tl.constexpr = 16 if DECODE else 0
    sink_blocks = 0
    seen_sinks = 0
    sinks = 0
    if SINKS:
        sinks = tl.load(sinks_ptr + row)
        seen_sinks = tl.maximum(tl.minimum(sinks, last_index - window + 1), 0)
        sink_blocks = (tl.maximum(seen_sinks - FIRST, 0) + BLOCK_N - 1) // BLOCK_N
    if MERGE:  # noqa: SIM102 (one is known when the kernel is compiled)
        # Nothing to add for queries that still hold the sinks in their window.
        if seen_sinks == 0:
            return

    # Blocks of keys are counted through the sinks into the window.
    part = tl.program_id(2)
    low = 0
    high = sink_blocks
    if WINDOW:
        high += end - begin
    if SPLITS > 1:
        every = high
        low = part * every // SPLITS
        high = (part + 1) * every // SPLITS

    in_query = valid[:, None] & in_head[None, :]
    offset = token[:, None] * stride_query_token + head[:, None] * stride_query_head
    offset += channel[None, :]
    query = tl.load(query_ptr + offset, mask=in_query, other=0.0)
    other = query
    if SINKS and PAIRS > 0:
        turns = channel < 2 * PAIRS
        across = _partner(channel, PAIRS, NEOX)
        other = tl.load(
            query_ptr + offset + across[None, :], mask=in_query & turns[None, :], other=0.0
        )
    slopes = tl.zeros([BLOCK_M], tl.float32)
    if ALIBI:
        slopes = tl.load(slopes_ptr + head, mask=valid, other=0.0)
    stored = token[:, None] * stride_output_token + head[:, None] * stride_output_head
    stored += channel[None, :]
    if MERGE:
        top = tl.load(lse_ptr + head * stride_lse + token, mask=valid, other=0.0) * _LOG2_E
        total = tl.full([BLOCK_M], 1.0, tl.float32)
        result = tl.load(output_ptr + stored, mask=in_query, other=0.0).to(tl.float32)
    else:
        top = tl.full([BLOCK_M], float("-inf"), tl.float32)
        total = tl.zeros([BLOCK_M], tl.float32)
        result = tl.zeros([BLOCK_M, D_PADDED], tl.float32)

    if SINKS:
        if DECODE:
            true_index = tl.load(positions + start) + tl.zeros([1], tl.int64)
            first = tl.arange(0, FIRST)
            here = first < tl.where(part == 0, seen_sinks, 0)
            block = tl.load(table_ptr + first // BLOCK_SIZE, mask=here, other=0).to(tl.int64)
            slot = block * stride_block + (first % BLOCK_SIZE) * stride_slot
            first_keys = tl.load(
                key_ptr + slot[None, :] + channel[:, None],
                mask=here[None, :] & in_head[:, None],
                other=0.0,
            )
            first_values = tl.load(
                value_ptr + slot[:, None] + channel[None, :],
                mask=here[:, None] & in_head[None, :],
                other=0.0,
            )
        else:
            true_index = tl.load(positions + token, mask=valid, other=0)
        place = tl.minimum(true_index, sinks + window - 1)

    if WINDOW:
        for n in range(
            begin + tl.maximum(low - sink_blocks, 0), begin + tl.maximum(high - sink_blocks, 0)
        ):
            key = n * BLOCK_N + tl.arange(0, BLOCK_N)
            seen = ((key >= lowest) & (key <= last_index))[None, :]
            distance = index[:, None] - key[None, :]
            if not DECODE:
                seen = seen & (distance >= 0) & (distance < window)
            key = tl.minimum(tl.maximum(key, lowest), last_index)
            top, total, result = _block_of_keys(
                query,
                top,
                total,
                result,
                key,
                seen,
                distance,
                slopes,
                key_ptr,
                value_ptr,
                table_ptr,
                stride_block,
                stride_slot,
                scale,
                soft_cap,
                channel,
                D,
                D_PADDED,
                BLOCK_SIZE,
                ALIBI,
                SOFT_CAP,
                PRECISION,
            )

    if SINKS:  # noqa: SIM102
        if (low < sink_blocks) | ((FIRST > 0) & (part == 0) & (seen_sinks > 0)):
            turned = query
            if PAIRS > 0:
                evicted = (true_index - place)[:, None]
                turned = _turned_back(query, other, evicted, units_ptr, channel, PAIRS, NEOX, FAST)
                turned = turned.to(query.dtype)
            if FIRST > 0:  # noqa: SIM102
                if part == 0:
                    top, total, result = _softmax_step(
                        turned,
                        first_keys,
                        first_values,
                        top,
                        total,
                        result,
                        (first < seen_sinks)[None, :],
                        place[:, None] - first[None, :],
                        slopes,
                        scale,
                        soft_cap,
                        ALIBI,
                        SOFT_CAP,
                        PRECISION,
                    )
            for n in range(low, tl.minimum(high, sink_blocks)):
                key = FIRST + n * BLOCK_N + tl.arange(0, BLOCK_N)
                seen = (key < seen_sinks)[None, :] & (key[None, :] <= index[:, None] - window)
                key = tl.minimum(key, seen_sinks - 1)
                top, total, result = _block_of_keys(
                    turned,
                    top,
                    total,
                    result,
                    key,
                    seen,
                    place[:, None] - key[None, :],
                    slopes,
                    key_ptr,
                    value_ptr,
                    table_ptr,
                    stride_block,
                    stride_slot,
                    scale,
                    soft_cap,
                    channel,
                    D,
                    D_PADDED,
                    BLOCK_SIZE,
                    ALIBI,
                    SOFT_CAP,
                    PRECISION,
                )

    if SPLITS > 1:
        # A part may hold no key at all: short streams have fewer blocks than parts.
        share = tl.where(total > 0.0, total, 1.0)
        lse = tl.where(total > 0.0, top + tl.log2(share), float("-inf"))
        heads = tl.num_programs(0) * GROUP
        slot = (row.to(tl.int64) * heads + head) * SPLITS
        tl.store(
            part_ptr + (slot + part)[:, None] * D_PADDED + channel[None, :],
            result / share[:, None],
            mask=valid[:, None],
        )
        tl.store(part_lse_ptr + slot + part, lse, mask=valid)
        # All of this program's threads have written before one of them says so.
        tl.debug_barrier()
        arrived = arrived_ptr + row * tl.num_programs(0) + kv_head
        if tl.atomic_add(arrived, 1, sem="acq_rel") != SPLITS - 1:
            return
        tl.store(arrived, 0)
        top = tl.full([BLOCK_M], float("-inf"), tl.float32)
        for s in tl.static_range(SPLITS):
            lse = tl.load(
                part_lse_ptr + slot + s, mask=valid, other=float("-inf"), cache_modifier=".cg"
            )
            top = tl.maximum(top, lse)
        level = tl.where(top == float("-inf"), 0.0, top)
        total = tl.zeros([BLOCK_M], tl.float32)
        result = tl.zeros([BLOCK_M, D_PADDED], tl.float32)
        for s in tl.static_range(SPLITS):
            lse = tl.load(
                part_lse_ptr + slot + s, mask=valid, other=float("-inf"), cache_modifier=".cg"
            )
            weight = tl.exp2(lse - level)
            piece = tl.load(
                part_ptr + (slot + s)[:, None] * D_PADDED + channel[None, :],
                mask=valid[:, None],
                other=0.0,
                cache_modifier=".cg",
            )
            total += weight
            result += weight[:, None] * piece

    total = tl.where(valid, total, 1.0)
    tl.store(
        output_ptr + stored,
        (result / total[:, None]).to(output_ptr.dtype.element_ty),
        mask=in_query,
    )


@triton.jit(do_not_specialize=["compact_columns"])
def compact_tables(
    table_ptr,  # int32 [rows, columns]
    compact_ptr,  # int32 [rows, compact columns]
    lens_ptr,  # int32 [rows]
    query_start_loc,  # int32 [rows + 1]
    seq_lens,  # int32 [rows]
    stride_table,
    stride_compact,
    compact_columns,
    window: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Each row's blocks from the first that the window of its first query touches."""
    row = tl.program_id(0)
    length = tl.load(seq_lens + row)
    count = tl.load(query_start_loc + row + 1) - tl.load(query_start_loc + row)
    first = tl.maximum(length - count - window + 1, 0) // BLOCK_SIZE
    blocks = (length + BLOCK_SIZE - 1) // BLOCK_SIZE - first
    if tl.program_id(1) == 0:
        tl.store(lens_ptr + row, length - first * BLOCK_SIZE)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    block = tl.load(
        table_ptr + row.to(tl.int64) * stride_table + first + column,
        mask=column < blocks,
        other=0,
    )
    tl.store(
        compact_ptr + row.to(tl.int64) * stride_compact + column,
        block,
        mask=column < compact_columns,
    )
