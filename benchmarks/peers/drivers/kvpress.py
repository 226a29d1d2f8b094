"""kvpress: its StreamingLLM press, applied while decoding."""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.peers.drivers.hugging_face import HuggingFacePeer
from benchmarks.peers.drivers.protocol import Settings, serve


class KvpressPeer(HuggingFacePeer):
    """The cache is trimmed to its size after every token."""

    packages = ("torch", "transformers", "kvpress")
    # In chunks of 32 its perplexity rises to 34, where the policy has 20.
    takes_chunks = False

    def load(self, settings: Settings) -> None:
        from kvpress import DecodingPress, StreamingLLMPress

        super().load(settings)
        self.press = DecodingPress(
            base_press=StreamingLLMPress(n_sink=settings.sink_tokens),
            compression_interval=1,
            # It trims after a token was added: that token is the last of the window.
            target_size=settings.cache_tokens - 1,
        )
        self.hooks = self.press(self.model)
        self.hooks.__enter__()

    def new_cache(self) -> Any:
        from transformers import DynamicCache

        self.seen = 0
        self.press.reset()
        return DynamicCache()

    def logits(self, ids: torch.Tensor) -> torch.Tensor:
        """The press trims the cache, so the model needs the tokens' positions."""
        positions = torch.arange(self.seen, self.seen + ids.shape[1])
        self.seen += ids.shape[1]
        out = self.model(
            ids,
            past_key_values=self.cache,
            use_cache=True,
            position_ids=positions[None],
        )
        return out.logits


if __name__ == "__main__":
    serve(KvpressPeer())
