"""Refused features that would replace the policy, or a part of vLLM."""

from __future__ import annotations

from typing import Any

from vllm_sink.startup.features.checks import Check, differs, flag, given, set_to
from vllm_sink.startup.features.row import NOT_HELD, refused


def _other_attention(vllm_config: Any) -> bool:
    attention = vllm_config.attention_config
    backend = getattr(attention, "backend", None)
    return (backend is not None and backend.name != "CUSTOM") or getattr(
        attention, "hisparse_config", None
    ) is not None


ROWS = (
    refused(
        "prefix hits within a block",
        "--prefix-match-unit",
        NOT_HELD,
        differs("cache_config", "prefix_match_unit"),
    ),
    refused(
        "retention of prefixes in the cache",
        "--prefix-cache-retention-interval",
        NOT_HELD,
        differs("cache_config", "prefix_cache_retention_interval", 0),
        allowed="0",
    ),
    refused(
        "the model's own window off",
        "--disable-sliding-window",
        "the policy replaces a window of all layers already; one of some layers belongs to the "
        "model",
        set_by=flag("disable_sliding_window"),
    ),
    refused(
        "Transformers' model in vLLM's place",
        "--model-impl",
        "only GPT-NeoX is tested in Transformers' implementation, which vLLM chooses by itself",
        Check(
            lambda c: c.model_config.model_impl not in ("auto", "vllm"),
            ("model_config.model_impl",),
        ),
        allowed="auto or vllm",
    ),
    refused(
        "another class for an architecture",
        "--model-class-overrides",
        "the architecture's name then does not say which model it is",
        given("model_config.model_class_overrides"),
    ),
    refused(
        "plugins for prompts",
        "--io-processor-plugin",
        NOT_HELD,
        differs("model_config", "io_processor_plugin"),
    ),
    refused(
        "lm-format-enforcer",
        "--structured-outputs-config.backend=lm-format-enforcer",
        "it does not load with vLLM 0.32",
        set_to("lm-format-enforcer", "structured_outputs_config.backend"),
        fields="",
        allowed="auto, xgrammar, guidance or outlines",
    ),
    refused(
        "only tokens in, tokens out",
        "--tokens-only",
        NOT_HELD,
        set_by=flag("tokens_only"),
    ),
    refused(
        "tools that the server calls",
        "--tool-server",
        NOT_HELD,
        set_by=flag("tool_server"),
    ),
    refused(
        "another attention backend",
        "--attention-backend",
        "the policy has its own",
        elsewhere="vllm_sink/startup/attach.py",
    ),
    refused(
        "another attention backend, by its config",
        "--attention-config",
        "the policy has its own backend, and attention that is not sparse",
        Check(_other_attention, ("attention_config.backend", "attention_config.hisparse_config")),
        allowed="no backend and no hisparse_config in it",
    ),
    refused(
        "another scheduler",
        "--scheduler-cls",
        "the policy has its own",
        elsewhere="vllm_sink/startup/attach.py",
    ),
    refused(
        "another worker",
        "--worker-cls",
        "the policy has its own",
        elsewhere="vllm_sink/startup/attach.py",
        allowed="auto",
    ),
    refused(
        "pooling",
        "--runner --convert --pooler-config",
        "only generation has streams",
        elsewhere="vllm_sink/startup/models.py",
        allowed="--runner auto or generate, with a model that generates",
    ),
)
