"""transformers' ``SinkCache``, which re-rotates every cached key at every step."""

from __future__ import annotations

from typing import Any

from benchmarks.peers.drivers.hugging_face import HuggingFacePeer
from benchmarks.peers.drivers.protocol import serve


class SinkCachePeer(HuggingFacePeer):
    # In chunks of 32 its perplexity falls to 9, where the policy has 20: as if a chunk's tokens saw
    # those that come after them.
    takes_chunks = False
    notes = (
        *HuggingFacePeer.notes,
        "as documented: the model places a new token by the cache's length",
    )

    def new_cache(self) -> Any:
        from transformers import SinkCache

        return SinkCache(self.settings.cache_tokens, self.settings.sink_tokens)


if __name__ == "__main__":
    serve(SinkCachePeer())
