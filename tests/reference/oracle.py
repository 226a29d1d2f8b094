"""SinkReference: a model under the sink policy, one token at a time."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from tests.reference.cache import AttentionSpec, LayerCache
from tests.reference.decoder import Decoder
from tests.reference.families import load_decoder


class SinkReference:
    """The sink policy, slow and plain (StreamingLLM, arXiv 2309.17453, section 3.2).

    folder: a Hugging Face checkpoint (config.json, safetensors).
    sink_tokens: S, the first tokens of the stream, never evicted.
    window_tokens: W, the last tokens, the newest among them. None: nothing is evicted; layers with
        a sliding window of the model's own then keep to that one.
    dtype: of weights and arithmetic. Angles are float64 either way.
    exact_gelu: BLOOM alone: the activation as vLLM 0.32 computes it, not as BLOOM was trained.
    true_positions: keep every token at its index in the text. This is *not* the policy: it is what
        the policy would be without section 3.2's positions within the cache.
    progress: a tqdm bar over the tokens.

    `step` continues the stream; `score`, `logprobs_of` and `greedy` each begin a new one.
    """

    def __init__(
        self,
        folder: str | Path,
        sink_tokens: int,
        window_tokens: int | None,
        *,
        dtype: torch.dtype = torch.float32,
        exact_gelu: bool = False,
        true_positions: bool = False,
        progress: bool = False,
    ) -> None:
        decoder = load_decoder(Path(folder), dtype, exact_gelu=exact_gelu)
        self._begin(decoder, sink_tokens, window_tokens, true_positions, progress)

    def with_policy(
        self, sink_tokens: int, window_tokens: int | None, *, true_positions: bool = False
    ) -> SinkReference:
        """The same weights, not loaded again, under another policy. A new stream."""
        other = object.__new__(SinkReference)
        other._begin(self.decoder, sink_tokens, window_tokens, true_positions, self.progress)
        return other

    def _begin(
        self,
        decoder: Decoder,
        sink_tokens: int,
        window_tokens: int | None,
        true_positions: bool,
        progress: bool,
    ) -> None:
        _check(decoder, sink_tokens, window_tokens)
        self.decoder = decoder
        self.sink_tokens = sink_tokens
        self.window_tokens = window_tokens
        self.true_positions = true_positions
        self.progress = progress
        self.reset()

    def reset(self) -> None:
        """Forget the stream."""
        self.caches = [self._cache(spec) for spec in self.decoder.attention]

    def _cache(self, spec: AttentionSpec) -> LayerCache:
        own = spec.own_window
        replaced = self.decoder.replaced_window
        if own is not None:
            # A local layer never sees a sink; its positions are distances, so cache order will do.
            window = own if self.window_tokens is None else min(own, self.window_tokens)
            return LayerCache(spec, 0, window, self.true_positions)
        if self.window_tokens is None:
            return LayerCache(spec, 0, replaced, self.true_positions)
        return LayerCache(spec, self.sink_tokens, self.window_tokens, self.true_positions)

    @torch.no_grad()
    def step(self, token_id: int) -> Tensor:
        """Append one token. Log-probabilities of the token after it, [vocabulary]."""
        hidden = self.decoder.embed(token_id)
        for index, cache in enumerate(self.caches):
            hidden = self.decoder.layer(index, hidden, cache.attend)
        return self.decoder.logits(hidden).log_softmax(dim=-1)

    def score(self, token_ids: Sequence[int]) -> Tensor:
        """Log-probabilities after each token, [T, vocabulary]."""
        self.reset()
        return torch.stack([self.step(token) for token in self._bar(token_ids)])

    def logprobs_of(self, token_ids: Sequence[int]) -> Tensor:
        """Each token's own log-probability given those before it, [T - 1]: entry i is that of token
        i + 1."""
        self.reset()
        following = iter(token_ids[1:])
        steps = self._bar(token_ids[:-1])
        return torch.stack([self.step(token)[next(following)] for token in steps])

    def greedy(self, prompt: Sequence[int], tokens: int) -> list[int]:
        """The `tokens` most probable tokens after the prompt, each fed back in."""
        self.reset()
        for token in prompt:
            after = self.step(token)
        chosen: list[int] = []
        for _ in self._bar(range(tokens)):
            if chosen:
                after = self.step(chosen[-1])
            chosen.append(int(after.argmax()))
        return chosen

    def _bar(self, tokens: Iterable[int]) -> Iterable[int]:
        return tqdm(tokens, disable=not self.progress, unit="tok")


def _check(decoder: Decoder, sink_tokens: int, window_tokens: int | None) -> None:
    if sink_tokens < 0 or (window_tokens is not None and window_tokens < 1):
        raise ValueError(f"not a policy: S {sink_tokens}, W {window_tokens}")
    replaced = decoder.replaced_window
    kept = sink_tokens + (window_tokens or 0)
    if replaced is not None and kept > replaced:
        raise ValueError(f"S + W of {kept} exceeds the model's own sliding window {replaced}")
