"""One small decoder for each family, chosen by the checkpoint's model type."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoConfig

from tests.reference.decoder import ACTIVATIONS, Decoder, Weights
from tests.reference.families.bloom import Bloom
from tests.reference.families.falcon import Falcon
from tests.reference.families.gemma import Gemma
from tests.reference.families.gpt_neox import GPTNeoX
from tests.reference.families.gptj import GPTJ
from tests.reference.families.llama import Llama
from tests.reference.families.mpt import MPT
from tests.reference.families.stablelm import StableLM

FAMILIES: dict[str, type[Decoder]] = {
    "llama": Llama,
    "mistral": Llama,
    "qwen2": Llama,
    "qwen3": Llama,
    "stablelm": StableLM,
    "gpt_neox": GPTNeoX,
    "gptj": GPTJ,
    "gemma": Gemma,
    "gemma2": Gemma,
    "gemma3_text": Gemma,
    "falcon": Falcon,
    "bloom": Bloom,
    "mpt": MPT,
}


def load_decoder(folder: Path, dtype: torch.dtype, *, exact_gelu: bool = False) -> Decoder:
    config = AutoConfig.from_pretrained(folder)
    family = FAMILIES.get(config.model_type)
    if family is None:
        raise ValueError(f"no reference for model type {config.model_type!r}")
    decoder = family(config, Weights.load(folder, dtype))
    if exact_gelu and isinstance(decoder, Bloom):
        decoder.gelu = ACTIVATIONS["gelu"]
    return decoder
