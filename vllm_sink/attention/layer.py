"""What is the same for every step of an attention layer."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from vllm_sink.rope.rotary import ExactRotary


@dataclass
class LayerParams:
    """A layer, as the providers see it.

    Attributes:
        num_heads, num_kv_heads, head_size: of the queries, of the keys, channels.
        scale: factor on the scores.
        window_tokens: of this layer: a layer with a window of its own keeps the smaller one.
        sinks: whether the layer sees sinks; a layer with a window of its own does not.
        alibi_slopes: float32 [num_heads] or None (Press et al., arXiv 2108.12409).
        soft_cap: ``cap * tanh(score / cap)`` before the softmax, 0 for none (Gemma 2).
        rotary: turns queries back towards the sinks; None without RoPE.
    """

    num_heads: int
    num_kv_heads: int
    head_size: int
    scale: float
    window_tokens: int
    sinks: bool
    alibi_slopes: torch.Tensor | None = None
    soft_cap: float = 0.0
    rotary: ExactRotary | None = None

    @property
    def group(self) -> int:
        """Query heads that share a KV head."""
        return self.num_heads // self.num_kv_heads

    def turn_back(self, query: torch.Tensor, evicted: torch.Tensor) -> torch.Tensor:
        """``query`` [n, q, num_heads, head_size] as it meets the sinks; ``evicted`` is [n, q]."""
        if self.rotary is None:
            return query
        turned = self.rotary.turn_back(query.flatten(0, 1), evicted.flatten())
        return turned.view(query.shape)
