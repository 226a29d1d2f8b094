"""Shared by every family's decoder: its weights by name, and its shape as a function."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from tests.reference.cache import AttentionSpec

# (query [heads, head_dim], key [kv_heads, head_dim], value [kv_heads, head_dim])
# → [heads, head_dim]: appends to the layer's cache, evicts, attends.
Attend = Callable[[Tensor, Tensor, Tensor], Tensor]

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_new": lambda x: F.gelu(x, approximate="tanh"),
    "gelu_pytorch_tanh": lambda x: F.gelu(x, approximate="tanh"),
}


class Weights:
    """A checkpoint's tensors under Hugging Face's names."""

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        self.tensors = tensors

    @classmethod
    def load(cls, folder: Path, dtype: torch.dtype) -> Weights:
        tensors: dict[str, Tensor] = {}
        for shard in sorted(folder.glob("*.safetensors")):
            tensors.update(load_file(shard))
        if not tensors:
            raise FileNotFoundError(f"no safetensors in {folder}")
        return cls({name: tensor.to(dtype) for name, tensor in tensors.items()})

    def __contains__(self, name: str) -> bool:
        return name in self.tensors

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name]

    def linear(self, name: str, x: Tensor) -> Tensor:
        return F.linear(x, self[f"{name}.weight"], self.tensors.get(f"{name}.bias"))

    def layer_norm(self, name: str, x: Tensor, eps: float) -> Tensor:
        bias = self.tensors.get(f"{name}.bias")
        return F.layer_norm(x, x.shape[-1:], self[f"{name}.weight"], bias, eps)

    def rms_norm(self, name: str, x: Tensor, eps: float, zero_centred: bool = False) -> Tensor:
        """zero_centred: multiply by 1 + weight, as Gemma does."""
        weight = self[f"{name}.weight"] + (1.0 if zero_centred else 0.0)
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight


class Decoder(ABC):
    """A decoder without state: what to compute for one token, given a way to attend.

    attention: one spec for each layer.
    replaced_window: a sliding window of the whole model's, which the policy replaces (Mistral).
        The policy has to stay within it.
    """

    attention: list[AttentionSpec]
    replaced_window: int | None = None

    def __init__(self, config: Any, weights: Weights) -> None:
        self.config = config
        self.weights = weights

    @abstractmethod
    def embed(self, token: int) -> Tensor:
        """The first hidden state, [hidden]."""

    @abstractmethod
    def layer(self, index: int, hidden: Tensor, attend: Attend) -> Tensor:
        """One layer: [hidden] → [hidden]."""

    @abstractmethod
    def logits(self, hidden: Tensor) -> Tensor:
        """[hidden] → [vocabulary]."""

    def unembed(self, hidden: Tensor, table: str) -> Tensor:
        """The output head; `table` is the embedding it is tied to when the checkpoint has none."""
        head = "lm_head" if "lm_head.weight" in self.weights else table
        return self.weights.linear(head, hidden)
