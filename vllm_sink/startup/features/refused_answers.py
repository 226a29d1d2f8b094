"""Refused features of the front end and of answers."""

from __future__ import annotations

import os
from importlib.metadata import entry_points
from typing import Any

from vllm_sink.startup.features.checks import Check, differs, flag, given, there
from vllm_sink.startup.features.row import NOT_HELD, refused


def _rust_front_end(vllm_config: Any) -> bool:
    return os.environ.get("VLLM_USE_RUST_FRONTEND", "0").lower() in ("1", "true")


def _installed_logits_processors(vllm_config: Any) -> bool:
    return bool(entry_points(group="vllm.logits_processors"))


def _names_of_logits_processors() -> str:
    return ",".join(sorted(it.name for it in entry_points(group="vllm.logits_processors")))


ROWS = (
    refused(
        "the Rust front end",
        "VLLM_USE_RUST_FRONTEND --grpc-port",
        "the Rust front end does not check sink_tokens",
        Check(_rust_front_end),
        fields="grpc_port",
        allowed="0, or unset",
    ),
    refused(
        "gRPC",
        "--grpc",
        "its server has no limits of tenants, no drain and no API key",
        set_by=flag("grpc"),
    ),
    refused(
        "logits processors",
        "--logits-processors",
        "a processor sees a new request with shortened lists at every rollover",
        given("model_config.logits_processors"),
    ),
    refused(
        "installed logits processors",
        "vllm.logits_processors",
        "an installed package registers a logits processor, which would see a new request with "
        "shortened lists at every rollover",
        Check(_installed_logits_processors, state=_names_of_logits_processors),
        fields="",
        allowed="an environment without such a package",
    ),
    refused(
        "watermarks in the text",
        "--watermark-config",
        "a watermark is computed from all tokens of a stream, and early ones are dropped",
        there("watermark_config"),
        set_by=flag("watermark_config"),
        hand_made="vLLM takes it on its V2 runner alone, which needs a GPU",
    ),
    refused(
        "trace replay",
        "--enable-trace-replay",
        "a trace is indexed by the length of the prompt, which a rollover lowers",
        differs("model_config", "enable_trace_replay", False),
        set_by=flag("enable_trace_replay"),
        hand_made="vLLM takes it on its V2 runner alone, which needs a GPU",
    ),
    refused(
        "sampling masks",
        "--return-sampling-mask",
        NOT_HELD,
        differs("model_config", "return_sampling_mask", False),
        set_by=flag("return_sampling_mask"),
        hand_made="vLLM takes it on its V2 runner alone, which needs a GPU",
    ),
    refused(
        "routed experts in the answer",
        "--enable-return-routed-experts --aux-output-config",
        "they are kept for every token of a request, and a stream has no last one",
        given("model_config.enable_return_routed_experts", "aux_output_config.enabled"),
        set_by=flag("enable_return_routed_experts"),
        hand_made="vLLM takes it on its V2 runner alone, which needs a GPU",
    ),
)
