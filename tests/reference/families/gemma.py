"""Gemma 1, 2 (soft caps, every other layer local) and 3 (q/k norms, local layers with their own
RoPE base)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from tests.reference.cache import AttentionSpec
from tests.reference.decoder import ACTIVATIONS, Attend, Decoder, Weights
from tests.reference.position import rotary


class Gemma(Decoder):
    def __init__(self, config: Any, weights: Weights) -> None:
        super().__init__(config, weights)
        self.head_dim = config.head_dim
        act = getattr(config, "hidden_activation", None) or config.hidden_act
        self.activation = ACTIVATIONS[act]
        types = getattr(config, "layer_types", None)
        kinds = types or ["full_attention"] * config.num_hidden_layers
        self.attention = [self._spec(kind) for kind in kinds]

    def _spec(self, kind: str) -> AttentionSpec:
        rope = self.config.rope_parameters
        local = kind == "sliding_attention"
        return AttentionSpec(
            scale=getattr(self.config, "query_pre_attn_scalar", self.head_dim) ** -0.5,
            positions=rotary(rope.get(kind, rope), self.head_dim),
            soft_cap=getattr(self.config, "attn_logit_softcapping", None),
            own_window=self.config.sliding_window if local else None,
        )

    def embed(self, token: int) -> Tensor:
        table = self.weights["model.embed_tokens.weight"]
        return table[token] * math.sqrt(self.config.hidden_size)

    def layer(self, index: int, hidden: Tensor, attend: Attend) -> Tensor:
        name = f"model.layers.{index}"
        attended = self._attention(name, self._norm(f"{name}.input_layernorm", hidden), attend)
        if f"{name}.pre_feedforward_layernorm.weight" not in self.weights:  # Gemma 1
            hidden = hidden + attended
            return hidden + self._mlp(name, self._norm(f"{name}.post_attention_layernorm", hidden))
        hidden = hidden + self._norm(f"{name}.post_attention_layernorm", attended)
        fed = self._mlp(name, self._norm(f"{name}.pre_feedforward_layernorm", hidden))
        return hidden + self._norm(f"{name}.post_feedforward_layernorm", fed)

    def _attention(self, name: str, x: Tensor, attend: Attend) -> Tensor:
        w = self.weights
        query, key, value = (
            w.linear(f"{name}.self_attn.{part}_proj", x).view(-1, self.head_dim) for part in "qkv"
        )
        if f"{name}.self_attn.q_norm.weight" in w:
            query = self._norm(f"{name}.self_attn.q_norm", query)
            key = self._norm(f"{name}.self_attn.k_norm", key)
        return w.linear(f"{name}.self_attn.o_proj", attend(query, key, value).flatten())

    def _mlp(self, name: str, x: Tensor) -> Tensor:
        w = self.weights
        gate = self.activation(w.linear(f"{name}.mlp.gate_proj", x))
        return w.linear(f"{name}.mlp.down_proj", gate * w.linear(f"{name}.mlp.up_proj", x))

    def _norm(self, name: str, x: Tensor) -> Tensor:
        return self.weights.rms_norm(name, x, self.config.rms_norm_eps, zero_centred=True)

    def logits(self, hidden: Tensor) -> Tensor:
        logits = self.unembed(self._norm("model.norm", hidden), "model.embed_tokens")
        cap = getattr(self.config, "final_logit_softcapping", None)
        return logits if cap is None else cap * torch.tanh(logits / cap)
