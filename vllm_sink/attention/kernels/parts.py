"""Rows whose keys are cut into parts (flash-decoding), merged in the same launch.

Each program stores the result of its part. The one that stores last reads all of them.
"""

from __future__ import annotations

# mypy: disable-error-code="no-untyped-def, untyped-decorator"
import triton
import triton.language as tl

from vllm_sink.attention.kernels.running_softmax import Softmax


@triton.jit
def _first_slot(row, head, config: tl.constexpr):
    """int64 [M]: index of the first part of each query in ``Partials.lse``; ``head`` is [M]."""
    heads = tl.num_programs(0) * config.group
    return (row.to(tl.int64) * heads + head) * config.splits


@triton.jit
def _counter(partials, row, kv_head):
    """Where the stored parts of a row and KV head are counted."""
    return partials.arrived + row * tl.num_programs(0) + kv_head


@triton.jit
def store_part(softmax, partials, part, row, queries, config: tl.constexpr):
    """Store the result of part ``part`` of ``row``.

    Args:
        softmax: ``Softmax`` over the part's keys, of which a short row may have none.
        partials: ``Partials``.
        queries: ``Queries``.
    """
    total = tl.where(softmax.total > 0.0, softmax.total, 1.0)
    lse = tl.where(softmax.total > 0.0, softmax.maximum + tl.log2(total), float("-inf"))
    slot = _first_slot(row, queries.head, config)
    tl.store(
        partials.results + (slot + part)[:, None] * config.padded_size + queries.channel[None, :],
        softmax.result / total[:, None],
        mask=queries.valid[:, None],
    )
    tl.store(partials.lse + slot + part, lse, mask=queries.valid)


@triton.jit
def is_last(partials, row, kv_head, config: tl.constexpr):
    """Count this program's part as stored; whether all parts of the row and KV head are now."""
    # Every thread of this program has written before one of them counts.
    tl.debug_barrier()
    arrived = _counter(partials, row, kv_head)
    return tl.atomic_add(arrived, 1, sem="acq_rel") == config.splits - 1


@triton.jit
def merge_parts(partials, row, kv_head, queries, config: tl.constexpr):
    """``Softmax`` over the keys of all parts, whose counter is zero again for the next launch.

    Arguments as in ``store_part``.
    """
    tl.store(_counter(partials, row, kv_head), 0)
    slot = _first_slot(row, queries.head, config)
    maximum = tl.full([config.block_m], float("-inf"), tl.float32)
    for part in tl.static_range(config.splits):
        lse = tl.load(
            partials.lse + slot + part,
            mask=queries.valid,
            other=float("-inf"),
            cache_modifier=".cg",
        )
        maximum = tl.maximum(maximum, lse)
    reference = tl.where(maximum == float("-inf"), 0.0, maximum)
    total = tl.zeros([config.block_m], tl.float32)
    result = tl.zeros([config.block_m, config.padded_size], tl.float32)
    for part in tl.static_range(config.splits):
        lse = tl.load(
            partials.lse + slot + part,
            mask=queries.valid,
            other=float("-inf"),
            cache_modifier=".cg",
        )
        weight = tl.exp2(lse - reference)
        part_result = tl.load(
            partials.results
            + (slot + part)[:, None] * config.padded_size
            + queries.channel[None, :],
            mask=queries.valid[:, None],
            other=0.0,
            cache_modifier=".cg",
        )
        total += weight
        result += weight[:, None] * part_result
    return Softmax(maximum, total, result)
