"""One layer's KV cache, and the attention of one token over it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tests.reference.position import Positions


@dataclass(frozen=True)
class AttentionSpec:
    """A decoder's description of one of its attention layers.

    scale: on the query-key product. positions: RoPE or ALiBi.
    soft_cap: scores become cap · tanh(score / cap) (Gemma 2). None: they stay.
    own_window: the layer sees that many tokens by its own design (Gemma's local layers), never a
        sink.
    """

    scale: float
    positions: Positions
    soft_cap: float | None = None
    own_window: int | None = None


class LayerCache:
    """Keys and values of one layer in cache order: sinks [0, S), then the window.

    Keys are cached as they leave the projection, unrotated, and placed at each step by their index
    within the cache, never by their index in the text (StreamingLLM, section 3.2).
    """

    def __init__(
        self, spec: AttentionSpec, sink_tokens: int, window_tokens: int | None, true_positions: bool
    ) -> None:
        self.spec = spec
        self.sink_tokens = sink_tokens
        self.window_tokens = window_tokens
        self.true_positions = true_positions
        self.keys = torch.empty(0)  # [n, kv_heads, head_dim] once there is one
        self.values = torch.empty(0)  # [n, kv_heads, head_dim]
        self.indices: list[int] = []  # each entry's index in the text
        self.length = 0  # tokens seen

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """The next token: query [heads, head_dim], key and value [kv_heads, head_dim] → [heads,
        head_dim]. Its own key is among those it sees."""
        self._append(key, value)
        self._evict()
        return self._softmax_over_cache(query)

    def _append(self, key: Tensor, value: Tensor) -> None:
        first = not self.indices
        self.keys = key[None] if first else torch.cat((self.keys, key[None]))
        self.values = value[None] if first else torch.cat((self.values, value[None]))
        self.indices.append(self.length)
        self.length += 1

    def _evict(self) -> None:
        """One token came, so at most one goes: the oldest that is no sink."""
        s = self.sink_tokens
        if self.window_tokens is None or len(self.indices) <= s + self.window_tokens:
            return
        self.keys = torch.cat((self.keys[:s], self.keys[s + 1 :]))
        self.values = torch.cat((self.values[:s], self.values[s + 1 :]))
        del self.indices[s]

    def _softmax_over_cache(self, query: Tensor) -> Tensor:
        n, kv_heads, head_dim = self.keys.shape
        positions = torch.tensor(self.indices) if self.true_positions else torch.arange(n)
        scheme = self.spec.positions

        keys = scheme.place(self.keys, positions)
        placed = scheme.place(query[None], positions[-1:])[0]
        # Query head h reads KV head h // (heads / kv_heads).
        grouped = placed.view(kv_heads, -1, head_dim)
        scores = torch.einsum("kgd,nkd->kgn", grouped, keys).flatten(0, 1) * self.spec.scale
        if self.spec.soft_cap is not None:
            scores = self.spec.soft_cap * torch.tanh(scores / self.spec.soft_cap)
        scores = scores + scheme.bias(positions, int(positions[-1]))
        weights = scores.softmax(dim=-1).to(query.dtype).view(kv_heads, -1, n)
        return torch.einsum("kgn,nkd->kgd", weights, self.values).flatten(0, 1)
