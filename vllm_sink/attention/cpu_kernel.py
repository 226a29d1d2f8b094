"""The same attention by torch's fused CPU kernel: no scores in memory, bf16 products in hardware.

Two calls, over the sinks and over the window, merged by their log-sum-exp: softmax over the union
is the mean of both results, weighted by ``exp(lse)``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

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
    visible = tile.visible(layer.window_tokens)
    out, lse = _part(layer, query, gather(cache, tile.window_slots), visible)
    if layer.sinks and tile.sink_slots is not None:
        assert tile.evicted is not None
        assert tile.sink_visible is not None
        turned = layer.turn_back(query, tile.evicted).to(query.dtype)
        sink_kv = gather(cache, tile.sink_slots)
        sink_out, sink_lse = _part(layer, turned, sink_kv, tile.sink_visible)
        # Sinks leave the window in order: a query that does not see the first sees none.
        sees = tile.sink_visible[:, :, :1, None]
        weight = torch.where(sees, torch.sigmoid(sink_lse - lse), 0.0)
        out = torch.lerp(out.float(), torch.where(sees, sink_out.float(), 0.0), weight)
    return out.to(query.dtype)


def gather(cache: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
    """[n, k, num_kv_heads, 2 * head_size] of ``slots`` [n, k]: whole rows at once."""
    rows = cache.flatten(1).index_select(0, slots.flatten())
    return rows.view(*slots.shape, *cache.shape[1:])


def _part(
    layer: LayerParams, query: torch.Tensor, kv: torch.Tensor, visible: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention over some keys, and its log-sum-exp [n, q, num_heads, 1] in float32.

    The query heads of one KV head stand as that many queries, so that no key is repeated.
    """
    runs, queries, heads, size = query.shape
    group = heads // layer.num_kv_heads
    q = query.view(runs, queries, layer.num_kv_heads, group, size)
    q = q.permute(0, 2, 3, 1, 4).reshape(runs, layer.num_kv_heads, group * queries, size)
    mask = visible[:, None].expand(-1, group, -1, -1).reshape(runs, 1, group * queries, -1)
    out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        q,
        kv[..., :size].transpose(1, 2),
        kv[..., size:].transpose(1, 2),
        attn_mask=torch.zeros((), dtype=q.dtype).masked_fill(~mask, float("-inf")),
        scale=layer.scale,
    )
    shape = (runs, layer.num_kv_heads, group, queries, -1)
    out = out.reshape(shape).permute(0, 3, 1, 2, 4).reshape(query.shape)
    lse = lse.reshape(shape).permute(0, 3, 1, 2, 4).reshape(runs, queries, heads, 1)
    return out, lse
