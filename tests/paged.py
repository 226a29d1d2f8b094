"""Random batches in a paged cache, and attention over them by one loop in float64."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch

from vllm_sink.attention.layer import LayerParams
from vllm_sink.attention.step import HostStep, PagedStep
from vllm_sink.rope.frequencies import Frequencies
from vllm_sink.rope.rotary import ExactRotary


@dataclass(frozen=True)
class Shape:
    """A layer and its engine."""

    heads: int = 4
    kv_heads: int = 2
    head_size: int = 64
    window: int = 50
    block_size: int = 16
    rotary: float = 1.0
    neox: bool = True
    alibi: bool = False
    soft_cap: float = 0.0
    sinks: bool = True


@dataclass(frozen=True)
class Row:
    """``count`` new tokens at the end of a stream of ``length``, of which ``base`` are forgotten.

    Attributes:
        sinks: ``S``.
        length: bookkeeping length, the new tokens included.
        count: new tokens.
        base: true index less bookkeeping index of the new tokens (a rolled stream).
    """

    sinks: int
    length: int
    count: int = 1
    base: int = 0


@dataclass
class Batch:
    """Everything that a provider's ``attend`` takes."""

    layer: LayerParams
    step: PagedStep
    query: torch.Tensor
    key_cache: torch.Tensor
    value_cache: torch.Tensor
    rows: tuple[Row, ...]


def layer_of(shape: Shape, device: str = "cpu") -> LayerParams:
    rotary = None
    if not shape.alibi:
        pairs = int(shape.head_size * shape.rotary) // 2
        inv_freq = 10_000.0 ** -(torch.arange(pairs, dtype=torch.float64) / pairs)
        rotary = ExactRotary(Frequencies(inv_freq, 1.0), shape.head_size, shape.neox).to(device)
    slopes = torch.tensor([2.0 ** -(h + 1) for h in range(shape.heads)], device=device)
    return LayerParams(
        shape.heads,
        shape.kv_heads,
        shape.head_size,
        shape.head_size**-0.5,
        shape.window,
        shape.sinks,
        slopes if shape.alibi else None,
        shape.soft_cap,
        rotary,
    )


def batch_of(
    shape: Shape,
    rows: tuple[Row, ...],
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    padding: int = 0,
    seed: int = 0,
) -> Batch:
    """Random keys, values and queries; evicted blocks and unused columns lead to NaN.

    Args:
        padding: rows without a token at the end, as in the padded batch of a CUDA graph.
    """
    generator = torch.Generator().manual_seed(seed)
    size, window = shape.block_size, shape.window
    width = max(-(-row.length // size) for row in rows) + 3
    total = sum(-(-row.length // size) for row in rows) + 1
    cache = torch.randn(
        total, size, shape.kv_heads, 2 * shape.head_size, generator=generator
    )
    cache[0] = math.nan  # the null block: whoever reads it shows
    free = (torch.randperm(total - 1, generator=generator) + 1).tolist()
    table = torch.zeros(len(rows) + padding, width, dtype=torch.int32)
    for r, row in enumerate(rows):
        first = row.length - row.count
        kept = range(max(0, first - window + 1) // size, -(-row.length // size))
        for column in {*range(-(-min(row.sinks, row.length) // size)), *kept}:
            table[r, column] = free.pop()
        assert row.count <= row.length
        # Past the stream's end a block holds what another stream left there.
        cache[table[r, (row.length - 1) // size], (row.length - 1) % size + 1 :] = math.nan
    counts = [row.count for row in rows] + [0] * padding
    starts = torch.tensor([0, *counts]).cumsum(0).int()
    tokens = sum(counts)
    positions = torch.cat(
        [torch.arange(row.length - row.count, row.length) + row.base for row in rows]
    )
    lens = [row.length for row in rows] + [0] * padding
    sinks = [row.sinks for row in rows] + [0] * padding
    query = torch.randn(tokens, shape.heads, shape.head_size, generator=generator)
    cache, query = cache.to(device, dtype), query.to(device, dtype)
    first_blocks = [
        max(0, length - count - window + 1) // size
        for length, count in zip(lens, counts, strict=True)
    ]
    columns = max(-(-n // size) - f for n, f in zip(lens, first_blocks, strict=True)) + 1
    compact = torch.zeros(len(lens), columns, dtype=torch.int32)
    for r, (n, f) in enumerate(zip(lens, first_blocks, strict=True)):
        part = table[r, f : -(-n // size)]
        compact[r, : len(part)] = part
    window_lens = [n - f * size for n, f in zip(lens, first_blocks, strict=True)]
    step = PagedStep(
        num_reqs=len(lens),
        num_tokens=tokens,
        max_query_len=max(counts),
        query_start_loc=starts.to(device),
        seq_lens=torch.tensor(lens, dtype=torch.int32, device=device),
        block_table=table.to(device),
        positions=positions.to(device),
        sinks=torch.tensor(sinks, dtype=torch.int32, device=device),
        block_size=size,
        window_tokens=window,
        past_window=max(lens) > window,
        window_table=compact.to(device),
        window_lens=torch.tensor(window_lens, dtype=torch.int32, device=device),
        max_window_len=max(window_lens),
        host=HostStep(counts, lens, sinks, window_lens),
    )
    key, value = cache.split(shape.head_size, -1)
    return Batch(layer_of(shape, device), step, query, key, value, rows)


def expected(batch: Batch) -> torch.Tensor:
    """float64 [tokens, heads, head_size] on the CPU: the policy's two rules, one query at a time."""
    layer, step = batch.layer, batch.step
    window, size = layer.window_tokens, step.block_size
    group = layer.num_heads // layer.num_kv_heads
    key, value = batch.key_cache.double().cpu(), batch.value_cache.double().cpu()
    table, query = step.block_table.cpu(), batch.query.double().cpu()
    inv_freq = None
    if layer.rotary is not None:
        inv_freq = layer.rotary.units.cpu().double() * (math.tau / 2.0**64)
    out = torch.zeros_like(query)
    at = 0
    for r, row in enumerate(batch.rows):
        for index in range(row.length - row.count, row.length):
            t = index + row.base
            place = min(t, row.sinks + window - 1)
            sinks = [j for j in range(row.sinks) if j <= index - window] if layer.sinks else []
            near = [j for j in range(index + 1) if index - j < window]
            slots = [(int(table[r, j // size]), j % size) for j in (*sinks, *near)]
            distance = torch.tensor([*(place - j for j in sinks), *(index - j for j in near)])
            for h in range(layer.num_heads):
                q = query[at, h]
                turned = q if inv_freq is None else _turn(q, t - place, inv_freq, layer)
                keys = torch.stack([key[b, o, h // group] for b, o in slots])
                scores = torch.cat((keys[: len(sinks)] @ turned, keys[len(sinks) :] @ q))
                scores = scores * layer.scale
                if layer.soft_cap:
                    scores = layer.soft_cap * (scores / layer.soft_cap).tanh()
                if layer.alibi_slopes is not None:
                    scores = scores - float(layer.alibi_slopes[h]) * distance
                values = torch.stack([value[b, o, h // group] for b, o in slots])
                out[at, h] = scores.softmax(0) @ values
            at += 1
    return out


def _turn(
    q: torch.Tensor, evicted: int, inv_freq: torch.Tensor, layer: LayerParams
) -> torch.Tensor:
    """q, turned back by ``evicted`` tokens, as complex numbers."""
    assert layer.rotary is not None
    pairs = len(inv_freq)
    turned, rest = q[: 2 * pairs], q[2 * pairs :]
    if layer.rotary.is_neox_style:
        z = torch.complex(turned[:pairs], turned[pairs:])
    else:
        z = torch.complex(turned[0::2], turned[1::2])
    z = z * torch.polar(torch.ones(pairs, dtype=torch.float64), -evicted * inv_freq)
    both = (z.real, z.imag)
    turned = torch.cat(both) if layer.rotary.is_neox_style else torch.stack(both, 1).flatten()
    return torch.cat((turned, rest))


#: Decode and prefill in one batch: before the window is full, inside the staircase, far beyond,
#: without sinks, with more sinks than tokens, rolled over, at an index past 2^24.
MIXED = (
    Row(4, 30, 30),
    Row(4, 50),
    Row(4, 52),
    Row(4, 58, 20),
    Row(0, 200, 3),
    Row(20, 66, 40),
    Row(20, 400, 37),
    Row(33, 333),
    Row(33, 10),
    Row(5, 180, 2, base=1_000_000),
    Row(1, 99, base=3 * 10**8 + 7),
)
DECODES = tuple(replace(row, count=1) for row in MIXED)
