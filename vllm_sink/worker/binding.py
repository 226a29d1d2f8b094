"""Ties each attention layer to the rotary module beside it, and makes that one exact.

An attention layer of vLLM does not know its rotary embedding: both are children of one module.
"""

from __future__ import annotations

from torch import nn
from vllm.model_executor.layers.attention import Attention
from vllm.model_executor.layers.rotary_embedding.base import RotaryEmbeddingBase

from vllm_sink.attention.backend import SinkAttentionImpl
from vllm_sink.errors import UnsupportedError
from vllm_sink.rope.frequencies import frequencies
from vllm_sink.rope.rotary import ExactRotary


def bind_rotary(model: nn.Module) -> int:
    """Give every attention layer of ``model`` an exact rotary; return how many layers got one.

    vLLM shares one rotary module between layers, and between engines of one process: it is replaced
    as a child, never changed.

    Raises:
        UnsupportedError: a layer has neither one rotary module nor ALiBi, or a rotary module turns
            keys of a layer that is not under the policy.
    """
    bound = 0
    exact: dict[int, ExactRotary] = {}
    seen: set[int] = set()
    for path, parent in list(model.named_modules()):
        children = dict(parent.named_children())
        layers = [c for c in children.values() if isinstance(c, Attention)]
        rotaries = {n: c for n, c in children.items() if isinstance(c, RotaryEmbeddingBase)}
        for layer in layers:
            impl = layer.impl
            if not isinstance(impl, SinkAttentionImpl):
                raise UnsupportedError(f"layer {layer.layer_name} did not take the sink backend")
            seen.add(id(layer))
            if impl.layer.alibi_slopes is not None and not rotaries:
                continue
            if len(rotaries) != 1:
                raise UnsupportedError(
                    f"layer {layer.layer_name} has {len(rotaries)} rotary embeddings beside it in "
                    f"{path or type(model).__name__}, and the policy needs one, or ALiBi"
                )
            ((name, rotary),) = rotaries.items()
            if id(rotary) not in exact:
                made = ExactRotary(frequencies(rotary), rotary.head_size, rotary.is_neox_style)
                exact[id(rotary)] = made.to(next(model.parameters()).device)
            setattr(parent, name, exact[id(rotary)])
            impl.layer.rotary = exact[id(rotary)]
            bound += 1
    left = [p for p, m in model.named_modules() if isinstance(m, RotaryEmbeddingBase)]
    if left:
        raise UnsupportedError(f"rotary embeddings without an attention layer beside them: {left}")
    if not seen:
        raise UnsupportedError("the model has no decoder attention layer")
    return bound
