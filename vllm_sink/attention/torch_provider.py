"""The ``torch`` provider: plain tensors on any device, and what other providers are tested against.

One softmax over sinks and window::

    scores = [ R(-e) q . K_sink  |  q . K_window ],  masked, then softmax, then times V

Keys lie in the cache rotated at their true index and are never moved, so the window is met as it is
and the query is turned back by e(t) to meet the sinks.
"""

from __future__ import annotations

import torch

from vllm_sink.attention import cpu_decode, cpu_kernel
from vllm_sink.attention.layer import LayerParams
from vllm_sink.attention.tiles import Tile

#: Floats of gathered keys and values and of scores that a layer holds at once.
MAX_FLOATS = 8 << 20


def attend(
    layer: LayerParams, tile: Tile, query: torch.Tensor, cache: torch.Tensor, output: torch.Tensor
) -> None:
    """Attention of the queries of one tile.

    Args:
        layer: of the layer.
        tile: which queries, which keys.
        query: [tokens, num_heads, head_size], rotated at their true index.
        cache: [slots, num_kv_heads, 2 * head_size], keys then values.
        output: [tokens, num_heads, head_size], written where the tile's queries are.
    """
    runs, queries = tile.queries.shape
    fused = cpu_kernel.usable(layer, query)
    if fused and queries == 1 and cpu_decode.attend(layer, tile, query, cache, output):
        return
    keys = tile.window_slots.shape[1] + (0 if tile.sink_slots is None else tile.sink_slots.shape[1])
    floats = keys * (layer.num_kv_heads * 2 * layer.head_size + layer.num_heads * queries)
    max_runs = max(1, MAX_FLOATS // floats)
    compute = cpu_kernel.attend if fused else _attend
    for first in range(0, runs, max_runs):
        part = tile if runs <= max_runs else tile.part(slice(first, first + max_runs))
        output[part.queries] = compute(layer, part, query[part.queries], cache).to(output.dtype)


def _attend(
    layer: LayerParams, tile: Tile, query: torch.Tensor, cache: torch.Tensor
) -> torch.Tensor:
    """Float32 [n, q, num_heads, head_size], from ``query`` of the same shape."""
    size = layer.head_size
    query = query.float()
    kv = cpu_kernel.gather(cache, tile.window_slots).float()  # [n, k, kv_heads, 2 * size]
    scores = _scores(layer, query, kv, tile.distance)
    scores.masked_fill_(~tile.visible(layer.window_tokens)[:, None, None], float("-inf"))
    if layer.sinks and tile.sink_slots is not None:
        assert tile.evicted is not None
        assert tile.sink_visible is not None
        assert tile.sink_distance is not None
        turned = layer.turn_back(query, tile.evicted)
        sink_kv = cpu_kernel.gather(cache, tile.sink_slots).float()
        sink_scores = _scores(layer, turned, sink_kv, tile.sink_distance)
        sink_scores.masked_fill_(~tile.sink_visible[:, None, None], float("-inf"))
        scores, kv = torch.cat((sink_scores, scores), -1), torch.cat((sink_kv, kv), 1)
    # [n, kv_heads, group * q, k] @ [n, kv_heads, k, size]
    value = kv[..., size:].transpose(1, 2)
    out = scores.softmax(-1).flatten(2, 3) @ value
    runs, queries = tile.queries.shape
    out = out.view(runs, layer.num_kv_heads, -1, queries, size).permute(0, 3, 1, 2, 4)
    return out.reshape(query.shape)


def _scores(
    layer: LayerParams, query: torch.Tensor, kv: torch.Tensor, distance: torch.Tensor
) -> torch.Tensor:
    """Float32 [n, kv_heads, group, q, k], not masked yet.

    Args:
        query: [n, q, num_heads, head_size].
        kv: [n, k, num_kv_heads, 2 * head_size].
        distance: int64 [n, q, k], for ALiBi's bias.
    """
    rows, count, heads, size = query.shape
    group = heads // layer.num_kv_heads
    # Query head h reads KV head h // group.
    q = query.view(rows, count, layer.num_kv_heads, group, size).permute(0, 2, 3, 1, 4)
    key = kv[..., :size].permute(0, 2, 3, 1)  # [n, kv_heads, size, k]
    scores = (q.reshape(rows, layer.num_kv_heads, group * count, size) @ key) * layer.scale
    scores = scores.view(rows, layer.num_kv_heads, group, count, -1)
    if layer.soft_cap:
        scores = layer.soft_cap * (scores / layer.soft_cap).tanh_()
    if layer.alibi_slopes is not None:
        slopes = layer.alibi_slopes.view(1, layer.num_kv_heads, group, 1, 1)
        scores = scores - slopes * distance[:, None, None].float()
    return scores
