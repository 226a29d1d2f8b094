"""StableLM: Llama with LayerNorm and a partly rotated head."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from tests.reference.cache import AttentionSpec
from tests.reference.decoder import ACTIVATIONS, Attend, Decoder, Weights
from tests.reference.position import rotary


class StableLM(Decoder):
    def __init__(self, config: Any, weights: Weights) -> None:
        super().__init__(config, weights)
        if config.qk_layernorm or config.use_parallel_residual:
            raise ValueError("no reference for StableLM 2's q/k norms or parallel residual")
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.eps = config.layer_norm_eps
        positions = rotary(config.rope_parameters, self.head_dim)
        spec = AttentionSpec(scale=self.head_dim**-0.5, positions=positions)
        self.attention = [spec] * config.num_hidden_layers

    def embed(self, token: int) -> Tensor:
        return self.weights["model.embed_tokens.weight"][token]

    def layer(self, index: int, hidden: Tensor, attend: Attend) -> Tensor:
        w, name = self.weights, f"model.layers.{index}"
        x = w.layer_norm(f"{name}.input_layernorm", hidden, self.eps)
        query, key, value = (
            w.linear(f"{name}.self_attn.{part}_proj", x).view(-1, self.head_dim) for part in "qkv"
        )
        attended = attend(query, key, value).flatten()
        hidden = hidden + w.linear(f"{name}.self_attn.o_proj", attended)

        x = w.layer_norm(f"{name}.post_attention_layernorm", hidden, self.eps)
        gate = ACTIVATIONS[self.config.hidden_act](w.linear(f"{name}.mlp.gate_proj", x))
        return hidden + w.linear(f"{name}.mlp.down_proj", gate * w.linear(f"{name}.mlp.up_proj", x))

    def logits(self, hidden: Tensor) -> Tensor:
        hidden = self.weights.layer_norm("model.norm", hidden, self.eps)
        return self.unembed(hidden, "model.embed_tokens")
