"""GPT-NeoX and Pythia: partly rotated heads, attention and MLP side by side."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from tests.reference.cache import AttentionSpec
from tests.reference.decoder import ACTIVATIONS, Attend, Decoder, Weights
from tests.reference.position import rotary


class GPTNeoX(Decoder):
    def __init__(self, config: Any, weights: Weights) -> None:
        super().__init__(config, weights)
        self.heads = config.num_attention_heads
        self.head_dim = config.hidden_size // self.heads
        self.eps = config.layer_norm_eps
        positions = rotary(config.rope_parameters, self.head_dim)
        spec = AttentionSpec(scale=self.head_dim**-0.5, positions=positions)
        self.attention = [spec] * config.num_hidden_layers

    def embed(self, token: int) -> Tensor:
        return self.weights["gpt_neox.embed_in.weight"][token]

    def layer(self, index: int, hidden: Tensor, attend: Attend) -> Tensor:
        name = f"gpt_neox.layers.{index}"
        x = self.weights.layer_norm(f"{name}.input_layernorm", hidden, self.eps)
        attended = self._attention(name, x, attend)
        if self.config.use_parallel_residual:
            return hidden + attended + self._mlp(name, hidden)
        hidden = hidden + attended
        return hidden + self._mlp(name, hidden)

    def _attention(self, name: str, x: Tensor, attend: Attend) -> Tensor:
        # The fused projection holds q, k, v of head 0, then of head 1, and so on.
        fused = self.weights.linear(f"{name}.attention.query_key_value", x)
        query, key, value = fused.view(self.heads, 3, self.head_dim).unbind(1)
        return self.weights.linear(f"{name}.attention.dense", attend(query, key, value).flatten())

    def _mlp(self, name: str, hidden: Tensor) -> Tensor:
        w = self.weights
        x = w.layer_norm(f"{name}.post_attention_layernorm", hidden, self.eps)
        up = ACTIVATIONS[self.config.hidden_act](w.linear(f"{name}.mlp.dense_h_to_4h", x))
        return w.linear(f"{name}.mlp.dense_4h_to_h", up)

    def logits(self, hidden: Tensor) -> Tensor:
        hidden = self.weights.layer_norm("gpt_neox.final_layer_norm", hidden, self.eps)
        head = "embed_out" if "embed_out.weight" in self.weights else "lm_head"
        return self.weights.linear(head, hidden)
