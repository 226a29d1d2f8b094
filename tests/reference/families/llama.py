"""Llama, Mistral, Qwen 2 (biases on q, k, v) and Qwen 3 (norms on q and k)."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from tests.reference.cache import AttentionSpec
from tests.reference.decoder import ACTIVATIONS, Attend, Decoder, Weights
from tests.reference.position import rotary


class Llama(Decoder):
    def __init__(self, config: Any, weights: Weights) -> None:
        super().__init__(config, weights)
        self.heads = config.num_attention_heads
        self.head_dim = getattr(config, "head_dim", None) or config.hidden_size // self.heads
        self.eps = config.rms_norm_eps
        positions = rotary(config.rope_parameters, self.head_dim)
        # Mistral's window is the whole model's. Qwen's, where switched on, is of some layers.
        types = getattr(config, "layer_types", None)
        if types is None:
            self.replaced_window = getattr(config, "sliding_window", None)
            types = ["full_attention"] * config.num_hidden_layers
        self.attention = [
            AttentionSpec(
                scale=self.head_dim**-0.5,
                positions=positions,
                own_window=config.sliding_window if kind == "sliding_attention" else None,
            )
            for kind in types
        ]

    def embed(self, token: int) -> Tensor:
        return self.weights["model.embed_tokens.weight"][token]

    def layer(self, index: int, hidden: Tensor, attend: Attend) -> Tensor:
        w, name = self.weights, f"model.layers.{index}"
        x = w.rms_norm(f"{name}.input_layernorm", hidden, self.eps)
        query = w.linear(f"{name}.self_attn.q_proj", x).view(self.heads, self.head_dim)
        key = w.linear(f"{name}.self_attn.k_proj", x).view(-1, self.head_dim)
        value = w.linear(f"{name}.self_attn.v_proj", x).view(-1, self.head_dim)
        if f"{name}.self_attn.q_norm.weight" in w:
            query = w.rms_norm(f"{name}.self_attn.q_norm", query, self.eps)
            key = w.rms_norm(f"{name}.self_attn.k_norm", key, self.eps)
        attended = attend(query, key, value).flatten()
        hidden = hidden + w.linear(f"{name}.self_attn.o_proj", attended)

        x = w.rms_norm(f"{name}.post_attention_layernorm", hidden, self.eps)
        gate = ACTIVATIONS[self.config.hidden_act](w.linear(f"{name}.mlp.gate_proj", x))
        return hidden + w.linear(f"{name}.mlp.down_proj", gate * w.linear(f"{name}.mlp.up_proj", x))

    def logits(self, hidden: Tensor) -> Tensor:
        hidden = self.weights.rms_norm("model.norm", hidden, self.eps)
        return self.unembed(hidden, "model.embed_tokens")
