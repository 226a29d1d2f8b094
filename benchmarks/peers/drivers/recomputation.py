"""Sliding window with recomputation: the last tokens are recomputed for every token."""

from __future__ import annotations

import torch

from benchmarks.peers.drivers.hugging_face import HuggingFacePeer
from benchmarks.peers.drivers.protocol import serve


class RecomputationPeer(HuggingFacePeer):
    notes = (
        *HuggingFacePeer.notes,
        "another policy than sinks: the last tokens alone, without the first ones",
    )

    def _encode(self, ids: torch.Tensor) -> torch.Tensor:
        """Logits after the last token of each row, [streams, vocabulary]."""
        hidden = self.model.model(ids, use_cache=False).last_hidden_state[:, -1]
        return self.model.lm_head(hidden)

    def _last(self, ids: torch.Tensor) -> torch.Tensor:
        return ids[:, -self.settings.cache_tokens :]

    @torch.no_grad()
    def begin(self, prompts: list[list[int]]) -> None:
        self.ids = self._last(torch.tensor(prompts))

    @torch.no_grad()
    def step(self) -> int:
        following = self._encode(self.ids).argmax(-1, keepdim=True)
        self.ids = self._last(torch.cat((self.ids, following), 1))
        return len(self.ids)

    @torch.no_grad()
    def score(self, tokens: list[int]) -> list[float]:
        found = []
        for i in range(1, len(tokens)):
            logits = self._encode(self._last(torch.tensor([tokens[:i]])))
            found.append(logits[0].float().log_softmax(-1)[tokens[i]].item())
        return found


if __name__ == "__main__":
    serve(RecomputationPeer())
