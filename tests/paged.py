"""Random batches in a paged cache, and attention over them by one loop in float64."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch

from vllm_sink.attention.layer import LayerParams
from vllm_sink.attention.paged_step import HostStep, PagedStep
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


#: All kinds of layers, by name.
SHAPES = {
    "plain": Shape(),
    "one head a group, blocks of 32": Shape(heads=2, kv_heads=2, block_size=32),
    "groups of three": Shape(heads=6, kv_heads=2),
    "groups of eight, size 128": Shape(heads=8, kv_heads=1, head_size=128, block_size=64),
    "size 256": Shape(head_size=256),
    "odd head size": Shape(head_size=80),
    "GPT-J pairs, partly turned": Shape(neox=False, rotary=0.25),
    "NeoX pairs, partly turned": Shape(rotary=0.25),
    "alibi": Shape(alibi=True),
    "soft cap": Shape(soft_cap=5.0),
    "no sinks": Shape(sinks=False),
    "window of one": Shape(window=1),
}


@dataclass(frozen=True)
class Row:
    """``count`` new tokens at the end of a stream of ``length``, of which ``base`` are forgotten.

    Attributes:
        sinks: ``S``.
        length: bookkeeping length, the new tokens included.
        count: new tokens.
        base: true index less bookkeeping index of the new tokens (a rolled stream).
        window: ``W``; the engine's for None.
    """

    sinks: int
    length: int
    count: int = 1
    base: int = 0
    window: int | None = None


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
    """Random keys, values and queries; evicted blocks and unused columns point to NaN.

    Args:
        padding: rows without a token at the end, as in the padded batch of a CUDA graph.
    """
    generator = torch.Generator().manual_seed(seed)
    size, window = shape.block_size, shape.window
    width = max(-(-row.length // size) for row in rows) + 3
    total = sum(-(-row.length // size) for row in rows) + 1
    cache = torch.randn(total, size, shape.kv_heads, 2 * shape.head_size, generator=generator)
    cache[0] = math.nan  # the null block: reading it shows
    free = (torch.randperm(total - 1, generator=generator) + 1).tolist()
    table = torch.zeros(len(rows) + padding, width, dtype=torch.int32)
    windows = [min(window, row.window or window) for row in rows]
    for r, row in enumerate(rows):
        first = row.length - row.count
        in_window = range(max(0, first - windows[r] + 1) // size, -(-row.length // size))
        for column in {*range(-(-min(row.sinks, row.length) // size)), *in_window}:
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
        windows=torch.tensor([*windows, *[window] * padding], dtype=torch.int32, device=device),
        block_size=size,
        window_tokens=window,
        past_window=max(lens) > min(windows),
        one_window=set(windows) == {window},
        window_table=compact.to(device),
        window_lens=torch.tensor(window_lens, dtype=torch.int32, device=device),
        max_window_len=max(window_lens),
        host=HostStep(counts, lens, sinks, [*windows, *[window] * padding]),
    )
    key, value = cache.split(shape.head_size, -1)
    return Batch(layer_of(shape, device), step, query, key, value, rows)


def expected(batch: Batch) -> torch.Tensor:
    """float64 [tokens, heads, head_size] on the CPU: the policy's two rules, one row at a time."""
    return attention(batch)[0]


def attention(batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """The same, and its log-sum-exp, float64 [heads, tokens]."""
    layer, step = batch.layer, batch.step
    size = step.block_size
    heads = torch.arange(layer.num_heads) // (layer.num_heads // layer.num_kv_heads)
    table, query = step.block_table.cpu(), batch.query.double().cpu()
    outputs, sums = [], []
    token = 0
    for r, row in enumerate(batch.rows):
        window = min(layer.window_tokens, row.window or layer.window_tokens)
        index = torch.arange(row.length - row.count, row.length)
        place = (index + row.base).clamp(max=row.sinks + window - 1)
        low = max(0, row.length - row.count - window + 1)
        j = torch.tensor(sorted({*range(min(row.sinks, row.length)), *range(low, row.length)}))
        device = batch.key_cache.device
        slots = (table[r, j // size].long().to(device), (j % size).to(device))
        key = batch.key_cache[slots].double().cpu()[:, heads]  # [keys, heads, size]
        value = batch.value_cache[slots].double().cpu()[:, heads]
        q = query[token : token + row.count]
        # [heads, tokens, keys] each: as the window is met, as the sinks are met.
        near = _scores(layer, q, key, index[:, None] - j)
        turned = _turned_back(layer, q, index + row.base - place)
        far = _scores(layer, turned, key, place[:, None] - j)
        in_window = (j <= index[:, None]) & (j > index[:, None] - window)
        is_sink = (j < row.sinks) & (j <= index[:, None] - window) & layer.sinks
        scores = torch.where(is_sink, far, near).where(in_window | is_sink, -math.inf)
        outputs.append(torch.einsum("htj,jhd->thd", scores.softmax(-1), value))
        sums.append(scores.logsumexp(-1))
        token += row.count
    return torch.cat(outputs), torch.cat(sums, 1)


def _scores(
    layer: LayerParams, query: torch.Tensor, key: torch.Tensor, distance: torch.Tensor
) -> torch.Tensor:
    scores = torch.einsum("thd,jhd->htj", query, key) * layer.scale
    if layer.soft_cap:
        scores = layer.soft_cap * (scores / layer.soft_cap).tanh()
    if layer.alibi_slopes is not None:
        scores = scores - layer.alibi_slopes.double().cpu()[:, None, None] * distance
    return scores


def _turned_back(layer: LayerParams, q: torch.Tensor, evicted: torch.Tensor) -> torch.Tensor:
    """Queries [tokens, heads, size], turned back by ``evicted`` [tokens], as complex numbers."""
    if layer.rotary is None:
        return q
    inv_freq = layer.rotary.units.cpu().double() * (math.tau / 2.0**64)
    pairs = len(inv_freq)
    part, rest = q[..., : 2 * pairs], q[..., 2 * pairs :]
    neox = layer.rotary.is_neox_style
    halves = part.split(pairs, -1) if neox else (part[..., 0::2], part[..., 1::2])
    angle = (-evicted[:, None] * inv_freq)[:, None]
    z = torch.complex(*(h.contiguous() for h in halves)) * torch.polar(angle.new_ones(()), angle)
    part = torch.cat((z.real, z.imag), -1) if neox else torch.view_as_real(z).flatten(-2)
    return torch.cat((part, rest), -1)


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

#: The same with windows of their own, beside some under the engine's.
WINDOWS = tuple(
    replace(row, window=window)
    for row, window in zip(MIXED, (1, 7, 30, None, 1, 30, None, 7, 30, 49, 1), strict=True)
)
WINDOW_DECODES = tuple(replace(row, count=1) for row in WINDOWS)

#: All of them, by name.
BATCHES = {
    "mixed": MIXED,
    "decode": DECODES,
    "windows, mixed": WINDOWS,
    "windows, decode": WINDOW_DECODES,
}
