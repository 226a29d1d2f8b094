"""BLOOM: ALiBi, a norm on the embedding."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from tests.reference.cache import AttentionSpec
from tests.reference.decoder import ACTIVATIONS, Attend, Decoder, Weights
from tests.reference.position import Alibi, bloom_slopes


class Bloom(Decoder):
    """gelu: the tanh form that BLOOM was trained with. vLLM 0.32 computes the exact one instead,
    which moves a tiny model's log-probabilities by up to 1e-3: `exact_gelu` follows it there."""

    def __init__(self, config: Any, weights: Weights) -> None:
        super().__init__(config, weights)
        if config.apply_residual_connection_post_layernorm:
            raise ValueError("no reference for BLOOM's residual after the norm")
        self.gelu = ACTIVATIONS["gelu_new"]
        self.heads = config.n_head
        self.head_dim = config.hidden_size // self.heads
        spec = AttentionSpec(scale=self.head_dim**-0.5, positions=Alibi(bloom_slopes(self.heads)))
        self.attention = [spec] * config.n_layer

    def embed(self, token: int) -> Tensor:
        row = self.weights["transformer.word_embeddings.weight"][token]
        return self._norm("transformer.word_embeddings_layernorm", row)

    def layer(self, index: int, hidden: Tensor, attend: Attend) -> Tensor:
        w, name = self.weights, f"transformer.h.{index}"
        x = self._norm(f"{name}.input_layernorm", hidden)
        # The fused projection holds q, k, v of head 0, then of head 1, and so on.
        fused = w.linear(f"{name}.self_attention.query_key_value", x)
        query, key, value = fused.view(self.heads, 3, self.head_dim).unbind(1)
        attended = attend(query, key, value).flatten()
        hidden = hidden + w.linear(f"{name}.self_attention.dense", attended)

        x = self._norm(f"{name}.post_attention_layernorm", hidden)
        up = self.gelu(w.linear(f"{name}.mlp.dense_h_to_4h", x))
        return hidden + w.linear(f"{name}.mlp.dense_4h_to_h", up)

    def _norm(self, name: str, x: Tensor) -> Tensor:
        return self.weights.layer_norm(name, x, self.config.layer_norm_epsilon)

    def logits(self, hidden: Tensor) -> Tensor:
        return self.unembed(self._norm("transformer.ln_f", hidden), "transformer.word_embeddings")
