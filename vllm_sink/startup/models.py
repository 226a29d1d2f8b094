"""Which models the policy supports, and which are refused, with the reason.

A flag that is silently ignored is the worst outcome, so a model or a feature is refused until a
test compares it with the reference.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from vllm_sink import segments
from vllm_sink.attention.providers import Traits
from vllm_sink.config.kv_policy import KVPolicy
from vllm_sink.errors import PolicyError, UnsupportedError
from vllm_sink.startup import features

#: Architectures that tests/e2e/test_architectures.py compares with the reference, token by token.
MODELS = {
    "LlamaForCausalLM": "Llama",
    "MistralForCausalLM": "Mistral",
    "Qwen2ForCausalLM": "Qwen2",
    "Qwen3ForCausalLM": "Qwen3",
    "GemmaForCausalLM": "Gemma",
    "Gemma2ForCausalLM": "Gemma 2",
    "Gemma3ForCausalLM": "Gemma 3 (text)",
    "GPTNeoXForCausalLM": "GPT-NeoX (Pythia)",
    "GPTJForCausalLM": "GPT-J",
    "FalconForCausalLM": "Falcon",
    "RWForCausalLM": "Falcon",
    "StableLmForCausalLM": "StableLM",
    "BloomForCausalLM": "BLOOM",
}

#: RoPE scaling that changes frequencies alone, so that scores depend on distance alone.
ROPE_TYPES = ("default", "linear", "llama3", "yarn")

#: Scaling that is refused, and why.
ROPE_REFUSED = {
    "dynamic": "its frequencies depend on the length of the sequence, and a stream has none",
    "longrope": "its frequencies depend on the length of the sequence, and a stream has none",
    "su": "its frequencies depend on the length of the sequence, and a stream has none",
}

#: The default window, as a part of the native context: the rest is room for pinned tokens.
DEFAULT_WINDOW_PART = 2


@dataclass(frozen=True)
class Model:
    """What the policy needs to know about a model.

    Attributes:
        architecture: as its config names it.
        family: the row of the README's table.
        positions: ``RoPE (llama3)``, ``ALiBi``, ...
        native_context: positions that it has learned.
        own_window: its uniform sliding window, which the policy replaces; None without one.
        layer_windows: windows of those layers that keep their own (Gemma); empty without.
    """

    architecture: str
    family: str
    positions: str
    native_context: int
    own_window: int | None
    layer_windows: tuple[int, ...]


def examine(model_config: Any) -> Model:
    """Read a model's config; no weights are needed.

    Args:
        model_config: vLLM's ``ModelConfig``, made without a ``max_model_len``.

    Raises:
        UnsupportedError: with the reason.
    """
    config = model_config.hf_text_config
    architecture = next(
        (a for a in model_config.architectures if a in MODELS), model_config.architectures[0]
    )
    if model_config.runner_type != "generate":
        raise features.refusal("--runner", model_config.runner_type)
    if model_config.use_mla:
        raise UnsupportedError(
            f"{architecture}: multi-head latent attention keeps a compressed key for position and "
            "content together, which cannot be rotated to another position"
        )
    if model_config.is_encoder_decoder:
        raise UnsupportedError(f"{architecture}: an encoder-decoder reads its whole input")
    if model_config.uses_mrope:
        raise UnsupportedError(f"{architecture}: M-RoPE has several indices a token, not one")
    if architecture not in MODELS:
        raise UnsupportedError(
            f"{architecture}: not tested against the reference yet; supported: "
            f"{', '.join(sorted(MODELS))}"
        )
    uniform, layers = _windows(model_config)
    native = int(model_config.max_model_len)
    return Model(
        architecture=architecture,
        family=MODELS[architecture],
        positions=_positions(config, architecture),
        # Distances past its own window are as new to a model as positions past its context.
        native_context=min(native, uniform) if uniform else native,
        own_window=uniform,
        layer_windows=layers,
    )


def _positions(config: Any, architecture: str) -> str:
    if architecture == "BloomForCausalLM" or getattr(config, "alibi", False):
        return "ALiBi"
    kinds = sorted({str(p.get("rope_type", "default")) for p in _rope_parameters(config)})
    for kind in kinds:
        if kind not in ROPE_TYPES:
            why = ROPE_REFUSED.get(kind, "not tested against the reference yet")
            raise UnsupportedError(f"{architecture} with RoPE scaling {kind!r}: {why}")
    return f"RoPE ({', '.join(kinds)})" if kinds else "RoPE (default)"


def _rope_parameters(config: Any) -> Iterator[dict[str, Any]]:
    """Each set of RoPE parameters: one, or one for each kind of layer (Gemma 3)."""
    found = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    if any(isinstance(value, dict) for value in found.values()):
        yield from (value for value in found.values() if isinstance(value, dict))
    elif found:
        yield found


def _windows(model_config: Any) -> tuple[int | None, tuple[int, ...]]:
    """The model's uniform window, and those of single layers."""
    window = model_config.get_sliding_window()
    if not window:
        return None, ()
    kinds = getattr(model_config.hf_text_config, "layer_types", None)
    if kinds is None or all(kind == "sliding_attention" for kind in kinds):
        return int(window), ()
    return None, tuple(int(window) for kind in kinds if kind == "sliding_attention")


def resolve(kv_policy: KVPolicy, model: Model) -> KVPolicy:
    """The policy with every number chosen.

    Raises:
        PolicyError: sinks and window together pass the positions that the model has learned.
    """
    native, sinks = model.native_context, kv_policy.sink_tokens
    if sinks >= native:
        raise PolicyError(
            "--sink-tokens", sinks, f"0 to {native - 1}, below the model's context of {native}"
        )
    window = kv_policy.window_tokens
    if window is None:
        window = min(max(1, native // DEFAULT_WINDOW_PART), native - sinks)
    if sinks + window > native:
        raise PolicyError(
            "--window-tokens",
            window,
            f"1 to {native - sinks}: with {sinks} sink tokens the cache may not pass the "
            f"{native} positions that the model has learned",
        )
    return replace(
        kv_policy,
        sink_tokens=sinks,
        window_tokens=window,
        native_context=native,
        replaces_sliding_window=model.own_window is not None,
        segment_tokens=kv_policy.segment_tokens or segments.default_tokens(native),
    )


def traits(vllm_config: Any, model: Model) -> Traits:
    """What the choice of an attention provider depends on; the GPU is not initialised."""
    from vllm.platforms import current_platform

    capability = None
    if current_platform.is_cuda():
        found = current_platform.get_device_capability()
        capability = None if found is None else (found[0], found[1])
    config = vllm_config.model_config
    return Traits(
        capability=capability,
        dtype=config.dtype,
        head_size=config.get_head_size(),
        block_size=vllm_config.cache_config.block_size,
        alibi=model.positions == "ALiBi",
        soft_cap=bool(getattr(config.hf_text_config, "attn_logit_softcapping", None)),
    )
