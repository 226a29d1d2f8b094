"""What each tiny model is: its config class, its sizes, and how vLLM 0.32 can serve it.

Sizes are as small as vLLM's CPU attention allows (its smallest head size is 32). The native context
is 128 everywhere, so that a stream of a few hundred tokens runs far past it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from transformers import (
    BloomConfig,
    FalconConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    GPTJConfig,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    MptConfig,
    PreTrainedConfig,
    Qwen2Config,
    Qwen3Config,
    StableLmConfig,
)

VOCAB = 256
NATIVE_CONTEXT = 128


@dataclass(frozen=True)
class Recipe:
    """One architecture.

    config_class, config: the Hugging Face config and its arguments.
    vllm: how vLLM 0.32 serves it: "native" (a model of its own), "transformers" (its Transformers
        backend, so the rotation is Hugging Face's module, not vLLM's), or "removed".
    zero_centred_norms: the norm multiplies by 1 + weight (Gemma), not by weight.
    """

    config_class: type[PreTrainedConfig]
    config: dict[str, Any] = field(default_factory=dict)
    vllm: str = "native"
    zero_centred_norms: bool = False


def _llama_like(**config: Any) -> dict[str, Any]:
    return {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "head_dim": 32,
        "max_position_embeddings": NATIVE_CONTEXT,
        "tie_word_embeddings": False,
        **config,
    }


def _gemma(**config: Any) -> dict[str, Any]:
    # vLLM's Gemma 2 has only the embedding as its head; its BLOOM can load no other.
    return _llama_like(tie_word_embeddings=True, **config)


def _rope(rope_type: str = "default", theta: float = 10_000.0, **scaling: Any) -> dict[str, Any]:
    return {"rope_type": rope_type, "rope_theta": theta, **scaling}


def _falcon(**config: Any) -> dict[str, Any]:
    return {
        "hidden_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": NATIVE_CONTEXT,
        **config,
    }


def _mpt(heads: int) -> dict[str, Any]:
    return {
        "d_model": 32 * heads,
        "n_heads": heads,
        "n_layers": 2,
        "max_seq_len": NATIVE_CONTEXT,
        "no_bias": True,
        "attn_config": {"alibi": True},
    }


def _bloom(heads: int) -> dict[str, Any]:
    return {
        "hidden_size": 32 * heads,
        "n_head": heads,
        "n_layer": 2,
        "seq_length": NATIVE_CONTEXT,
    }


_GEMMA3_ROPE = {
    "sliding_attention": _rope(theta=10_000.0),
    "full_attention": _rope(theta=1_000_000.0),
}

ARCHITECTURES: dict[str, Recipe] = {
    "llama": Recipe(LlamaConfig, _llama_like()),
    "llama-gqa": Recipe(
        LlamaConfig, _llama_like(num_key_value_heads=2, rope_parameters=_rope(theta=500_000.0))
    ),
    "llama-llama3rope": Recipe(
        LlamaConfig,
        _llama_like(
            num_key_value_heads=2,
            rope_parameters=_rope(
                "llama3",
                factor=8.0,
                low_freq_factor=1.0,
                high_freq_factor=4.0,
                original_max_position_embeddings=64,
            ),
        ),
    ),
    "llama-linear": Recipe(LlamaConfig, _llama_like(rope_parameters=_rope("linear", factor=4.0))),
    "llama-yarn": Recipe(
        LlamaConfig,
        _llama_like(
            rope_parameters=_rope("yarn", factor=4.0, original_max_position_embeddings=32),
        ),
    ),
    "mistral": Recipe(MistralConfig, _llama_like(num_key_value_heads=2, sliding_window=96)),
    "mistral-nosw": Recipe(MistralConfig, _llama_like(num_key_value_heads=2, sliding_window=None)),
    "qwen2": Recipe(Qwen2Config, _llama_like(num_key_value_heads=2, hidden_size=128)),
    "qwen3": Recipe(Qwen3Config, _llama_like(num_key_value_heads=2)),
    "stablelm": Recipe(
        StableLmConfig,
        {
            "hidden_size": 128,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": NATIVE_CONTEXT,
            "rope_parameters": _rope(partial_rotary_factor=0.25),
            "use_qkv_bias": True,
        },
    ),
    "gpt-neox": Recipe(
        GPTNeoXConfig,
        {
            "hidden_size": 128,
            "intermediate_size": 256,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "max_position_embeddings": NATIVE_CONTEXT,
            "rope_parameters": _rope(partial_rotary_factor=0.25),
            "use_parallel_residual": True,
        },
        vllm="transformers",
    ),
    "gptj": Recipe(
        GPTJConfig,
        {"n_embd": 128, "n_head": 4, "n_layer": 2, "n_positions": NATIVE_CONTEXT, "rotary_dim": 16},
    ),
    "gemma": Recipe(GemmaConfig, _gemma(num_key_value_heads=1), zero_centred_norms=True),
    # Caps low enough to bend the logits of a random model, and a query scale that is not the head
    # dimension's: with Gemma 2's own figures a reference that forgot them would pass.
    "gemma2": Recipe(
        Gemma2Config,
        _gemma(
            num_key_value_heads=2,
            sliding_window=48,
            query_pre_attn_scalar=24,
            attn_logit_softcapping=8.0,
            final_logit_softcapping=10.0,
        ),
        zero_centred_norms=True,
    ),
    "gemma3": Recipe(
        Gemma3TextConfig,
        _gemma(
            num_key_value_heads=2,
            sliding_window=32,
            query_pre_attn_scalar=24,
            layer_types=["sliding_attention", "sliding_attention", "full_attention"],
            rope_parameters=_GEMMA3_ROPE,
        ),
        zero_centred_norms=True,
    ),
    "falcon-rope-mqa": Recipe(FalconConfig, _falcon(multi_query=True, parallel_attn=True)),
    "falcon-rope-gqa": Recipe(
        FalconConfig, _falcon(new_decoder_architecture=True, num_kv_heads=2, parallel_attn=True)
    ),
    "falcon-alibi": Recipe(
        FalconConfig, _falcon(alibi=True, multi_query=False, parallel_attn=False, bias=True)
    ),
    "bloom": Recipe(BloomConfig, _bloom(heads=4)),
    "bloom-odd": Recipe(BloomConfig, _bloom(heads=6)),
    "mpt": Recipe(MptConfig, _mpt(heads=4), vllm="removed"),
    "mpt-odd": Recipe(MptConfig, _mpt(heads=6), vllm="removed"),
}
