"""The attention-sinks package: the paper's code, patched into transformers' attention classes."""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.peers.drivers.hugging_face import HuggingFacePeer
from benchmarks.peers.drivers.protocol import Settings, serve


class AttentionSinksPeer(HuggingFacePeer):
    packages = ("torch", "transformers", "attention-sinks")

    def make(self, settings: Settings, dtype: torch.dtype) -> Any:
        from attention_sinks import AutoModelForCausalLM

        return AutoModelForCausalLM.from_pretrained(
            settings.model,
            torch_dtype=dtype,
            attention_sink_size=settings.sink_tokens,
            # It trims after a token was added: that token is the last of the window.
            attention_sink_window_size=settings.window_tokens - 1,
        )


if __name__ == "__main__":
    serve(AttentionSinksPeer())
