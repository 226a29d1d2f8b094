"""Shared by the peers in PyTorch: a static batch of equally long streams, in lockstep."""

from __future__ import annotations

import os
from itertools import pairwise
from typing import Any

import torch

from benchmarks.peers.drivers.protocol import Peer, Settings

#: Tokens of one forward pass once the cache is full.
CHUNK = 64


class HuggingFacePeer(Peer):
    """A model whose cache a subclass trims.

    Streams begin together and are equally long, as a static batch requires; a server's streams
    are not, so this is the maximum that such a peer can reach.
    """

    packages = ("torch", "transformers")
    #: Whether it keeps its policy when given several tokens past a full cache.
    takes_chunks = True
    notes = ("several streams are one static batch: they begin together and are equally long",)

    def load(self, settings: Settings) -> None:
        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
        self.settings = settings
        self.model = self.make(settings, getattr(torch, settings.dtype)).eval()

    def make(self, settings: Settings, dtype: torch.dtype) -> Any:
        from transformers import AutoModelForCausalLM

        return AutoModelForCausalLM.from_pretrained(settings.model, torch_dtype=dtype)

    def new_cache(self) -> Any:
        """An empty cache, as the model takes it."""
        return None

    def logits(self, ids: torch.Tensor) -> torch.Tensor:
        """Feeds [streams, n] tokens; logits after each, [streams, n, vocabulary]."""
        out = self.model(ids, past_key_values=self.cache, use_cache=True)
        self.cache = out.past_key_values
        return out.logits

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Feeds [streams, n] tokens; logits after the last of each, [streams, vocabulary]."""
        return self.logits(ids)[:, -1]

    def feed(self, ids: torch.Tensor) -> torch.Tensor:
        """A prompt: what fills the cache in one pass, the rest in pieces."""
        full = self.settings.cache_tokens
        logits = self.forward(ids[:, :full])
        for begin in range(full, ids.shape[1], CHUNK):
            logits = self.forward(ids[:, begin : begin + CHUNK])
        return logits

    @torch.no_grad()
    def begin(self, prompts: list[list[int]]) -> None:
        self.cache = self.new_cache()
        self.next = self.feed(torch.tensor(prompts)).argmax(-1, keepdim=True)

    @torch.no_grad()
    def step(self) -> int:
        self.next = self.forward(self.next).argmax(-1, keepdim=True)
        return len(self.next)

    @torch.no_grad()
    def score(self, tokens: list[int]) -> list[float]:
        """One token at a time, as the policy is defined."""
        self.cache = self.new_cache()
        found = []
        for token, following in pairwise(tokens):
            logits = self.forward(torch.tensor([[token]]))
            found.append(logits[0].float().log_softmax(-1)[following].item())
        return found

    @torch.no_grad()
    def stream(self, tokens: list[int], chunk: int) -> list[float]:
        """What a chunk may see beyond its window is the chunk itself."""
        if not self.takes_chunks:
            return self.score(tokens)
        self.cache = self.new_cache()
        found: list[float] = []
        for begin in range(0, len(tokens) - 1, chunk):
            logits = self.logits(torch.tensor([tokens[begin : begin + chunk]]))[0]
            after = torch.tensor(tokens[begin + 1 : begin + chunk + 1])
            logprobs = logits[: len(after)].float().log_softmax(-1)
            found += logprobs.gather(1, after[:, None])[:, 0].tolist()
        return found
