"""Falcon: RoPE with one KV head (7B), RoPE with KV groups (40B), and ALiBi (Falcon-RW)."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from tests.reference.cache import AttentionSpec
from tests.reference.decoder import Attend, Decoder, Weights
from tests.reference.position import Alibi, Positions, bloom_slopes, rotary


class Falcon(Decoder):
    def __init__(self, config: Any, weights: Weights) -> None:
        super().__init__(config, weights)
        self.heads = config.num_attention_heads
        self.head_dim = config.hidden_size // self.heads
        if config.new_decoder_architecture:
            self.kv_heads = config.num_kv_heads
        else:
            self.kv_heads = 1 if config.multi_query else self.heads
        scale = self.head_dim**-0.5
        # Falcon adds its ALiBi before it scales the scores, so the scale reaches the slopes too.
        positions: Positions = (
            Alibi(bloom_slopes(self.heads, scale))
            if config.alibi
            else rotary(config.rope_parameters, self.head_dim)
        )
        spec = AttentionSpec(scale=scale, positions=positions)
        self.attention = [spec] * config.num_hidden_layers

    def embed(self, token: int) -> Tensor:
        return self.weights["transformer.word_embeddings.weight"][token]

    def layer(self, index: int, hidden: Tensor, attend: Attend) -> Tensor:
        name = f"transformer.h.{index}"
        if f"{name}.ln_attn.weight" in self.weights:  # 40B: one norm each, side by side
            attended = self._attention(name, self._norm(f"{name}.ln_attn", hidden), attend)
            return hidden + attended + self._mlp(name, self._norm(f"{name}.ln_mlp", hidden))
        x = self._norm(f"{name}.input_layernorm", hidden)
        attended = self._attention(name, x, attend)
        if f"{name}.post_attention_layernorm.weight" not in self.weights:  # 7B: one norm for both
            return hidden + attended + self._mlp(name, x)
        hidden = hidden + attended  # RW: one after the other
        return hidden + self._mlp(name, self._norm(f"{name}.post_attention_layernorm", hidden))

    def _attention(self, name: str, x: Tensor, attend: Attend) -> Tensor:
        # The fused projection holds, for each KV head, its query heads, then its key and its value.
        fused = self.weights.linear(f"{name}.self_attention.query_key_value", x)
        grouped = fused.view(self.kv_heads, -1, self.head_dim)
        query = grouped[:, :-2].reshape(self.heads, self.head_dim)
        attended = attend(query, grouped[:, -2], grouped[:, -1]).flatten()
        return self.weights.linear(f"{name}.self_attention.dense", attended)

    def _mlp(self, name: str, x: Tensor) -> Tensor:
        up = F.gelu(self.weights.linear(f"{name}.mlp.dense_h_to_4h", x))
        return self.weights.linear(f"{name}.mlp.dense_4h_to_h", up)

    def _norm(self, name: str, x: Tensor) -> Tensor:
        return self.weights.layer_norm(name, x, self.config.layer_norm_epsilon)

    def logits(self, hidden: Tensor) -> Tensor:
        hidden = self._norm("transformer.ln_f", hidden)
        return self.unembed(hidden, "transformer.word_embeddings")
