"""GPT-J: rotation over neighbouring pairs, attention and MLP side by side under one norm."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tests.reference.cache import AttentionSpec
from tests.reference.decoder import ACTIVATIONS, Attend, Decoder, Weights
from tests.reference.position import Rotary


class GPTJ(Decoder):
    def __init__(self, config: Any, weights: Weights) -> None:
        super().__init__(config, weights)
        self.head_dim = config.n_embd // config.n_head
        exponents = torch.arange(0, config.rotary_dim, 2, dtype=torch.float64) / config.rotary_dim
        positions = Rotary(10_000.0**-exponents, interleaved=True)
        spec = AttentionSpec(scale=self.head_dim**-0.5, positions=positions)
        self.attention = [spec] * config.n_layer

    def embed(self, token: int) -> Tensor:
        return self.weights["transformer.wte.weight"][token]

    def layer(self, index: int, hidden: Tensor, attend: Attend) -> Tensor:
        w, name = self.weights, f"transformer.h.{index}"
        x = w.layer_norm(f"{name}.ln_1", hidden, self.config.layer_norm_epsilon)
        query, key, value = (
            w.linear(f"{name}.attn.{part}_proj", x).view(-1, self.head_dim) for part in "qkv"
        )
        attended = w.linear(f"{name}.attn.out_proj", attend(query, key, value).flatten())
        up = ACTIVATIONS[self.config.activation_function](w.linear(f"{name}.mlp.fc_in", x))
        return hidden + attended + w.linear(f"{name}.mlp.fc_out", up)

    def logits(self, hidden: Tensor) -> Tensor:
        eps = self.config.layer_norm_epsilon
        hidden = self.weights.layer_norm("transformer.ln_f", hidden, eps)
        return self.unembed(hidden, "transformer.wte")
