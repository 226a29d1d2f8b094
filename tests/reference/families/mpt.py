"""MPT: ALiBi, no biases anywhere."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from tests.reference.cache import AttentionSpec
from tests.reference.decoder import Attend, Decoder, Weights
from tests.reference.position import Alibi, mpt_slopes


class MPT(Decoder):
    def __init__(self, config: Any, weights: Weights) -> None:
        super().__init__(config, weights)
        attention = config.attn_config
        if not attention.alibi or attention.qk_ln or attention.clip_qkv:
            raise ValueError("no reference for MPT without ALiBi, with q/k norms or clipping")
        self.head_dim = config.d_model // config.n_heads
        spec = AttentionSpec(
            scale=attention.softmax_scale or self.head_dim**-0.5,
            positions=Alibi(mpt_slopes(config.n_heads, attention.alibi_bias_max)),
        )
        self.attention = [spec] * config.n_layers

    def embed(self, token: int) -> Tensor:
        return self.weights["transformer.wte.weight"][token]

    def layer(self, index: int, hidden: Tensor, attend: Attend) -> Tensor:
        w, name = self.weights, f"transformer.blocks.{index}"
        x = self._norm(f"{name}.norm_1", hidden)
        query, key, value = w.linear(f"{name}.attn.Wqkv", x).view(3, -1, self.head_dim)
        attended = attend(query, key, value).flatten()
        hidden = hidden + w.linear(f"{name}.attn.out_proj", attended)

        up = F.gelu(w.linear(f"{name}.ffn.up_proj", self._norm(f"{name}.norm_2", hidden)))
        return hidden + w.linear(f"{name}.ffn.down_proj", up)

    def _norm(self, name: str, x: Tensor) -> Tensor:
        return self.weights.layer_norm(name, x, self.config.layer_norm_epsilon)

    def logits(self, hidden: Tensor) -> Tensor:
        return self.unembed(self._norm("transformer.norm_f", hidden), "transformer.wte")
