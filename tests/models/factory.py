"""Writes a tiny random checkpoint of an architecture, as vLLM and transformers both read it."""

from __future__ import annotations

import json
import math
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from tests.models.recipes import ARCHITECTURES, VOCAB, Recipe
from tests.models.tokenizer import BOS_ID, EOS_ID, PAD_ID, build_tokenizer

_MARKER = "tiny.json"
_REVISION = 5  # raise it when the weights or the tokenizer change

_FINAL_NORMS = ("model.norm.weight", "ln_f.weight", "norm_f.weight")
_TABLES = ("embed", "wte", "lm_head")


def make_tiny(arch: str, folder: Path, seed: int = 0, **overrides: Any) -> Path:
    """Write the tiny model `arch` to `folder` and return the folder.

    A folder that already holds exactly this model is left unchanged; one that holds another tiny
    model is replaced. The folder is renamed into place complete, so processes may race for it.

    seed: of the weights. overrides: config fields that differ from the recipe's.
    """
    recipe = ARCHITECTURES[arch]
    folder = Path(folder)
    marker = json.dumps(
        {"arch": arch, "seed": seed, "overrides": overrides, "revision": _REVISION}, sort_keys=True
    )
    if _holds(folder, marker):
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as scratch:
        built = Path(scratch) / "model"
        _model(recipe, seed, overrides).save_pretrained(built)
        build_tokenizer(VOCAB).save_pretrained(built)
        (built / _MARKER).write_text(marker)
        _put_in_place(built, folder, marker)
    return folder


def _holds(folder: Path, marker: str) -> bool:
    written = folder / _MARKER
    return written.is_file() and written.read_text() == marker


def _put_in_place(built: Path, folder: Path, marker: str) -> None:
    if (folder / _MARKER).is_file():
        shutil.rmtree(folder, ignore_errors=True)
    try:
        os.rename(built, folder)
    except OSError:
        # Another process's rename came first; an error only if it wrote something else.
        if not _holds(folder, marker):
            raise


def _model(recipe: Recipe, seed: int, overrides: dict[str, Any]) -> PreTrainedModel:
    fields = {
        "vocab_size": VOCAB,
        "bos_token_id": BOS_ID,
        "eos_token_id": EOS_ID,
        "pad_token_id": PAD_ID,
        **recipe.config,
        **overrides,
    }
    config = recipe.config_class(**fields)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.tie_weights()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            mean, std = _scale(name, parameter, recipe)
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(mean + std * noise)
            if name.endswith(_FINAL_NORMS) and config.tie_word_embeddings:
                # With a tied head a token's own embedding scores highest, and greedy decoding would
                # repeat one token forever. Random signs here undo that.
                shift = 1.0 if recipe.zero_centred_norms else 0.0
                signs = torch.randint(2, parameter.shape, generator=generator) * 2 - 1
                parameter.copy_((parameter + shift) * signs - shift)
    return model.eval()


def _scale(name: str, parameter: torch.Tensor, recipe: Recipe) -> tuple[float, float]:
    """Mean and standard deviation to draw a parameter with.

    Chosen so that every part shows in the log-probabilities: attention logits of a few units (a
    pattern, neither uniform nor one-hot), attention and MLP that weigh as much as the embedding,
    biases and norms that are not the identity.
    """
    if parameter.dim() == 1:
        if name.endswith("bias"):
            return 0.0, 0.1
        if "embeddings_layernorm" in name:
            return (
                0.15,
                0.02,
            )  # as small as other models' embeddings, so that attention outweighs it
        identity = 0.0 if recipe.zero_centred_norms else 1.0
        # Norms on queries and keys set the size of the attention logits all by themselves.
        sharpen = 0.4 if "q_norm" in name or "k_norm" in name else 0.0
        return identity + sharpen, 0.1
    gain = 1.6 if any(part in name for part in _TABLES) else 1.3
    return 0.0, gain / math.sqrt(parameter.shape[-1])
