"""The same attention by torch's fused CPU kernel: no scores in memory, bf16 products in hardware.

A stream that decodes has one query, so its few sink keys are turned towards it, and one call goes
over sinks and window. In a prefill each query would turn them by another angle: there the queries
are turned, in two calls, merged by their log-sum-exp: softmax over the union is the mean of both
results, weighted by ``exp(lse)``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from vllm_sink.rope.phase import angles
from vllm_sink.rope.rotary import rotate

if TYPE_CHECKING:
    from vllm_sink.attention.layer import LayerParams
    from vllm_sink.attention.tiles import Tile


def usable(layer: LayerParams, query: torch.Tensor) -> bool:
    """Whether the kernel computes this layer: no soft cap, and no bias, which it would round."""
    return query.device.type == "cpu" and not layer.soft_cap and layer.alibi_slopes is None


def attend(
    layer: LayerParams, tile: Tile, query: torch.Tensor, cache: torch.Tensor
) -> torch.Tensor:
    """[n, q, num_heads, head_size] in the dtype of ``query``, which has the same shape.

    Args:
        cache: [slots, num_kv_heads, 2 * head_size].
    """
    window = layer.window_tokens
    has_sinks = layer.sinks and tile.sink_slots is not None
    if has_sinks and query.shape[1] == 1:
        return _decode(layer, tile, query, cache)
    mask = tile.once(
        ("window", window, query.dtype), lambda: _mask(tile.visible(window), query.dtype)
    )
    out, lse = _part(layer, query, gather(cache, tile.window_slots), mask)
    if has_sinks:
        assert tile.evicted is not None
        assert tile.sink_visible is not None
        assert tile.sink_slots is not None
        turned = layer.turn_back(query, tile.evicted).to(query.dtype)
        sink_kv = gather(cache, tile.sink_slots)
        seen = tile.sink_visible
        sink_mask = tile.once(("sinks", query.dtype), lambda: _mask(seen, query.dtype))
        sink_out, sink_lse = _part(layer, turned, sink_kv, sink_mask)
        # Sinks leave the window in order: a query that does not see the first sees none.
        sees = tile.sink_visible[:, :, :1, None]
        weight = torch.where(sees, torch.sigmoid(sink_lse - lse), 0.0)
        out = torch.lerp(out.float(), torch.where(sees, sink_out.float(), 0.0), weight)
    return out.to(query.dtype)


def _decode(
    layer: LayerParams, tile: Tile, query: torch.Tensor, cache: torch.Tensor
) -> torch.Tensor:
    """One query of each stream: its sinks first among the keys, R(e) k_sink instead of R(-e) q."""
    assert tile.sink_slots is not None
    window, sinks = layer.window_tokens, tile.sink_slots.shape[1]
    slots = tile.once("slots", lambda: torch.cat((tile.sink_slots, tile.window_slots), 1))  # type: ignore[arg-type]
    kv = gather(cache, slots)
    if layer.rotary is not None:
        # `kv` is a copy; the cache keeps the keys at their true index.
        key = kv[:, :sinks, :, : layer.head_size]
        cos, sin = tile.once(("angles", layer.rotary.key), lambda: _angles(layer, tile))
        turned = rotate(key.flatten(0, 1), cos, sin, layer.rotary.is_neox_style)
        key.copy_(turned.view(key.shape))
    mask = tile.once(
        ("both", window, query.dtype),
        lambda: _mask(torch.cat((tile.sink_visible, tile.visible(window)), 2), query.dtype),  # type: ignore[arg-type]
    )
    return _part(layer, query, kv, mask)[0]


def _angles(layer: LayerParams, tile: Tile) -> tuple[torch.Tensor, torch.Tensor]:
    """cos and sin of e(t), float32 [n * S, pairs]: each stream's, once for each of its sinks."""
    assert layer.rotary is not None
    assert tile.evicted is not None
    assert tile.sink_slots is not None
    evicted = tile.evicted.expand(-1, tile.sink_slots.shape[1])
    return angles(evicted.reshape(-1), layer.rotary.units)


def _mask(visible: torch.Tensor, dtype: torch.dtype) -> torch.Tensor | None:
    """What is added to the scores, [n, q, k]; None where everything is visible."""
    if bool(visible.all()):
        return None
    return torch.zeros((), dtype=dtype).masked_fill(~visible, float("-inf"))


def gather(cache: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
    """[n, k, num_kv_heads, 2 * head_size] of ``slots`` [n, k]: whole rows at once."""
    rows = cache.flatten(1).index_select(0, slots.flatten())
    return rows.view(*slots.shape, *cache.shape[1:])


def _part(
    layer: LayerParams, query: torch.Tensor, kv: torch.Tensor, mask: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention over some keys, and its log-sum-exp [n, q, num_heads, 1] in float32.

    The query heads of one KV head stand as that many queries, so that no key is repeated.
    """
    runs, queries, heads, size = query.shape
    group = heads // layer.num_kv_heads
    q = query.view(runs, queries, layer.num_kv_heads, group, size)
    q = q.permute(0, 2, 3, 1, 4).reshape(runs, layer.num_kv_heads, group * queries, size)
    if mask is not None:
        mask = mask[:, None].expand(-1, group, -1, -1).reshape(runs, 1, group * queries, -1)
    out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        q,
        kv[..., :size].transpose(1, 2),
        kv[..., size:].transpose(1, 2),
        attn_mask=mask,
        scale=layer.scale,
    )
    shape = (runs, layer.num_kv_heads, group, queries, -1)
    out = out.reshape(shape).permute(0, 3, 1, 2, 4).reshape(query.shape)
    lse = lse.reshape(shape).permute(0, 3, 1, 2, 4).reshape(runs, queries, heads, 1)
    return out, lse
