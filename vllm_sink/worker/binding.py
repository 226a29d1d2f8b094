"""Binds each attention layer to the rotary module that turns its keys, made exact.

An attention layer of vLLM does not know its rotary embedding: both are children of one module. In
models served through Transformers one rotary module at the top serves every layer.
"""

from __future__ import annotations

from torch import nn
from vllm.model_executor.layers.attention import Attention
from vllm.model_executor.layers.rotary_embedding.base import RotaryEmbeddingBase

from vllm_sink.attention.backend import SinkAttentionImpl
from vllm_sink.errors import UnsupportedError
from vllm_sink.rope import transformers
from vllm_sink.rope.frequencies import frequencies
from vllm_sink.rope.rotary import ExactRotary


def bind_rotary(model: nn.Module, true_positions: bool = False) -> None:
    """Give every attention layer of ``model`` its exact rotary module, or check that it has ALiBi.

    vLLM shares one rotary module between layers, and between engines of one process: it is replaced
    as a child, never changed.

    Args:
        model: as vLLM loaded it.
        true_positions: of the policy. A layer without a rotary module does not turn its queries
            back, so they read sinks at their true distance, with any provider.

    Raises:
        UnsupportedError: a layer has neither a rotary module nor ALiBi, or a rotary module belongs
            to no layer under the policy.
    """
    layers = {p: m for p, m in model.named_modules() if isinstance(m, Attention)}
    if not layers:
        raise UnsupportedError("the model has no decoder attention layer")
    device = next(model.parameters()).device
    made: dict[int, ExactRotary] = {}
    rotaries = dict(_rotaries(model))
    shared = _shared(rotaries)
    for path, layer in layers.items():
        impl = layer.impl
        if not isinstance(impl, SinkAttentionImpl):
            raise UnsupportedError(f"layer {path} did not take the sink backend")
        above = path.rpartition(".")[0]
        beside = shared or [p for p in rotaries if p.rpartition(".")[0] == above]
        if impl.layer.alibi_slopes is not None and not beside:
            if true_positions:
                raise UnsupportedError("true_positions with ALiBi: it is an experiment on RoPE")
            continue
        if len(beside) != 1:
            raise UnsupportedError(
                f"layer {path} has {len(beside)} rotary embeddings beside it; the policy needs "
                "one, or ALiBi"
            )
        rotary = rotaries[beside[0]]
        if id(rotary) not in made:
            made[id(rotary)] = _exact(rotary, layer.head_size).to(device)
        impl.layer.rotary = None if true_positions else made[id(rotary)]
    for path, rotary in rotaries.items():
        if id(rotary) not in made:
            raise UnsupportedError(f"rotary embedding {path} turns keys of no attention layer")
        parent, _, name = path.rpartition(".")
        setattr(model.get_submodule(parent), name, made[id(rotary)])


def _rotaries(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Every path to a rotary module; a shared one has several."""
    return [
        (path, module)
        for path, module in model.named_modules(remove_duplicate=False)
        if isinstance(module, RotaryEmbeddingBase) or hasattr(module, "original_inv_freq")
    ]


def _shared(rotaries: dict[str, nn.Module]) -> list[str]:
    """The path of a Transformers model's one rotary module; empty for other models."""
    top = [p for p, m in rotaries.items() if not isinstance(m, RotaryEmbeddingBase)]
    return top if len(top) == len(rotaries) else []


def _exact(rotary: nn.Module, head_size: int) -> ExactRotary:
    if isinstance(rotary, RotaryEmbeddingBase):
        return ExactRotary(frequencies(rotary), rotary.head_size, rotary.is_neox_style)
    return transformers.exact(rotary, head_size)
