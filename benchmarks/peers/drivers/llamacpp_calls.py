"""llama.cpp through its API: a cache that slides by one token, or drops half in one go.

``PEER_EVICTION`` says which: ``token`` (the paper's policy) or ``half`` (context shift).
"""

from __future__ import annotations

import math
import os
from itertools import pairwise

from benchmarks.peers.drivers.protocol import Peer, Settings, serve


class LlamaCppPeer(Peer):
    packages = ("cyllama",)
    notes = ("every key is turned anew whenever one is evicted; Python picks the next token",)

    def load(self, settings: Settings) -> None:
        from cyllama.llama import llama_cpp as llama

        llama.disable_logging()
        llama.ggml_backend_load_all()
        self.llama, self.settings = llama, settings
        self.half = os.environ["PEER_EVICTION"] == "half"

        class Model(llama.LlamaModel):  # type: ignore[misc, name-defined]
            """cyllama 0.2.18's contexts read a count that their model lacks."""

            @property
            def n_vocab(self) -> int:
                return int(self.get_vocab().n_vocab)

        self.model = Model(settings.gguf, llama.LlamaModelParams())

    def _context(self, streams: int) -> None:
        params = self.llama.LlamaContextParams()
        params.n_seq_max = streams
        # One token more than the policy keeps: the new one comes before the oldest goes.
        params.n_ctx = streams * -(-(self.settings.cache_tokens + 1) // 256) * 256
        params.n_batch = params.n_ubatch = 512
        params.n_threads = params.n_threads_batch = 1
        self.context = self.llama.LlamaContext(self.model, params)
        self.lengths = [0] * streams

    def _make_room(self, stream: int) -> None:
        """What the cache drops before the next token of a stream, and where the rest moves."""
        kept, size = self.settings.sink_tokens, self.settings.cache_tokens
        if (length := self.lengths[stream]) < size:
            return
        drop = (length - kept) // 2 if self.half else 1
        self.context.memory_seq_rm(stream, kept, kept + drop)
        self.context.memory_seq_add(stream, kept + drop, length, -drop)
        self.lengths[stream] = length - drop

    def _feed(self, tokens: list[int]) -> list[list[float]]:
        """One token of each stream; the logits after it."""
        batch = self.llama.LlamaBatch(n_tokens=len(tokens), embd=0, n_seq_max=1)
        for stream, token in enumerate(tokens):
            self._make_room(stream)
            batch.add(token, self.lengths[stream], [stream], True)
            self.lengths[stream] += 1
        self.context.decode(batch)
        return [self.context.get_logits_ith(i) for i in range(len(tokens))]

    def begin(self, prompts: list[list[int]]) -> None:
        """Prompts in pieces that fit the cache; then one token at a time as `step`."""
        self._context(len(prompts))
        for stream, prompt in enumerate(prompts):
            piece = prompt[: self.settings.cache_tokens - 1]
            batch = self.llama.LlamaBatch(n_tokens=len(piece), embd=0, n_seq_max=1)
            for i, token in enumerate(piece):
                batch.add(token, i, [stream], False)
            self.context.decode(batch)
            self.lengths[stream] = len(piece)
        self.last = [prompt[self.settings.cache_tokens - 1] for prompt in prompts]
        for _ in range(8):
            self.step()

    def step(self) -> int:
        self.last = [max(range(len(row)), key=row.__getitem__) for row in self._feed(self.last)]
        return len(self.last)

    def score(self, tokens: list[int]) -> list[float]:
        self._context(1)
        found = []
        for token, following in pairwise(tokens):
            row = self._feed([token])[0]
            top = max(row)
            found.append(row[following] - top - math.log(sum(math.exp(x - top) for x in row)))
        return found


if __name__ == "__main__":
    serve(LlamaCppPeer())
