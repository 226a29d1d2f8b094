"""Weights that are not plain, under streams that roll: LoRA adapters and quantised layers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.e2e.engines import (
    greedy,
    prompt,
    random_tokens,
    reference_logprobs,
    scheduler_of,
    tiny,
)
from tests.e2e.streams import (
    SEGMENT,
    SINKS,
    WHOLE,
    WINDOW,
    difference,
    rolling,
    run,
    said,
    told,
)

#: The linear layers of a Llama.
LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
RANK, ALPHA = 8, 16


@pytest.fixture(scope="module")
def folder(tiny_folder: Path) -> Path:
    return tiny("llama-gqa", tiny_folder)


def linear_layers(folder: Path) -> dict[str, Tensor]:
    """Weights of the linear layers, by the layer's name."""
    weights = load_file(folder / "model.safetensors")
    layers = {name.removesuffix(".weight"): weight for name, weight in weights.items()}
    return {name: weight for name, weight in layers.items() if name.endswith(LINEAR)}


def copy_with(folder: Path, to: Path, weights: dict[str, Tensor], **config: Any) -> Path:
    """The model with some of its tensors, and fields of its config, replaced."""
    shutil.copytree(folder, to)
    every = {**load_file(folder / "model.safetensors"), **weights}
    save_file(every, to / "model.safetensors", metadata={"format": "pt"})
    told = json.loads((folder / "config.json").read_text()) | config
    (to / "config.json").write_text(json.dumps(told))
    return to


def write_adapter(folder: Path, to: Path, seed: int) -> dict[str, Tensor]:
    """A random adapter in PEFT's format; the weights with it merged."""
    generator = torch.Generator().manual_seed(seed)
    adapter, merged = {}, {}
    for name, weight in linear_layers(folder).items():
        rows, columns = weight.shape
        a = torch.randn(RANK, columns, generator=generator) / columns**0.5
        b = torch.randn(rows, RANK, generator=generator) * 0.3
        adapter[f"base_model.model.{name}.lora_A.weight"] = a
        adapter[f"base_model.model.{name}.lora_B.weight"] = b
        merged[f"{name}.weight"] = weight + b @ a * (ALPHA / RANK)
    to.mkdir()
    save_file(adapter, to / "adapter_model.safetensors")
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": RANK,
        "lora_alpha": ALPHA,
        "target_modules": list(LINEAR),
    }
    (to / "adapter_config.json").write_text(json.dumps(config))
    return merged


def test_lora(folder: Path, tmp_path: Path) -> None:
    """Streams of one text with two adapters, side by side: each says what its merged weights say.

    No third without an adapter beside them: vLLM 0.32's CPU build gives it one of theirs, also
    without a policy.
    """
    from vllm.lora.request import LoRARequest

    models = {
        f"adapter {seed}": (
            copy_with(folder, tmp_path / f"merged {seed}", write_adapter(folder, at, seed)),
            LoRARequest(f"adapter {seed}", seed, str(at)),
        )
        for seed in (1, 2)
        for at in [tmp_path / f"adapter {seed}"]
    }
    last = {}
    with rolling(folder, enable_lora=True, max_lora_rank=RANK, max_loras=2) as llm:
        core, tokens = llm.llm_engine, random_tokens(200)
        for name, (_, lora) in models.items():
            core.add_request(name, prompt(tokens), greedy(150, SINKS), lora_request=lora)
        while core.has_unfinished_requests():
            for output in core.step():
                last[output.request_id] = output
        assert scheduler_of(llm).rollovers >= 6
        last["plain"] = run(llm, {"plain": (tokens, greedy(150, SINKS))})["plain"]
    for name, (merged, _) in {**models, "plain": (folder, None)}.items():
        assert difference(last[name], merged, SINKS) < 1e-4
    assert difference(last["adapter 1"], models["adapter 2"][0], SINKS) > 1


def quantised(folder: Path, to: Path) -> Path:
    """Linear layers in 8 bits a weight, a scale a row, as compressed-tensors stores them."""
    stored = {}
    for name, weight in linear_layers(folder).items():
        scale = weight.abs().amax(1, keepdim=True) / 127
        stored[f"{name}.weight"] = (weight / scale).round().to(torch.int8)
        stored[f"{name}.weight_scale"] = scale
    eight = {"num_bits": 8, "type": "int", "symmetric": True}
    group = {
        "targets": ["Linear"],
        "weights": {**eight, "strategy": "channel", "dynamic": False},
        "input_activations": {**eight, "strategy": "token", "dynamic": True},
    }
    config = {
        "quant_method": "compressed-tensors",
        "format": "int-quantized",
        "quantization_status": "compressed",
        "ignore": ["lm_head"],
        "config_groups": {"group_0": group},
    }
    return copy_with(folder, to, stored, quantization_config=config)


def test_quantised_weights(folder: Path, tmp_path: Path) -> None:
    """8-bit weights and activations: a stream that rolls says what it says in one segment."""
    small = quantised(folder, tmp_path / "small")
    requests = {str(s): (random_tokens(90), greedy(150, s)) for s in (SINKS, 20)}
    outputs = {}
    for segment in (WHOLE, SEGMENT):
        with rolling(small, segment_tokens=segment) as llm:
            assert llm.llm_engine.vllm_config.quant_config.get_name() == "compressed-tensors"
            outputs[segment] = run(llm, requests)
            rollovers = scheduler_of(llm).rollovers
        assert rollovers == 0 if segment == WHOLE else rollovers >= 4
    for name, whole in outputs[WHOLE].items():
        rolled = outputs[SEGMENT][name]
        assert said(rolled) == said(whole)
        assert (told(rolled) - told(whole)).abs().max() < 1e-4
        # Another model than the one that was rounded, so quantised; and close to it.
        every = [*whole.prompt_token_ids, *said(whole)]
        plain = reference_logprobs(folder, int(name), WINDOW, every)[-len(said(whole)) :]
        assert 0.01 < (told(whole) - plain).abs().mean() < 1
