"""Penalties count every token of a stream, also those that have rolled out (V1 runner).

vLLM's V1 sampler counts the lists it holds at every step; a rollover shortens them, and what a
stream says would depend on the segment. What leaves is counted here, once: two rows of the
vocabulary for each stream that has a penalty, of whatever length. (The V2 runner counts as tokens
come and needs none of this.)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from vllm import _custom_ops
from vllm.model_executor.layers.utils import get_token_bin_counts_and_mask
from vllm.v1.sample.ops.penalties import _convert_to_tensors


class ForgottenTokens:
    """Counts of the tokens of one stream that left the worker's lists.

    Attributes:
        prompt: bool [vocabulary], tokens of the prompt.
        output: int64 [vocabulary], how often each was generated.
    """

    def __init__(self, vocab_size: int) -> None:
        self.prompt = torch.zeros(vocab_size, dtype=torch.bool)
        self.output = torch.zeros(vocab_size, dtype=torch.int64)

    def add(self, prompt: Sequence[int], output: Sequence[int]) -> None:
        """These tokens leave."""
        self.prompt[list(prompt)] = True
        self.output += torch.bincount(
            torch.tensor(output, dtype=torch.int64), minlength=len(self.output)
        )


def penalised(params: Any) -> bool:
    """Whether a request's sampling parameters have a penalty."""
    return bool(
        params.presence_penalty or params.frequency_penalty or params.repetition_penalty != 1.0
    )


def counting(
    apply_penalties: Callable[..., torch.Tensor],
    rows: Callable[[], Sequence[ForgottenTokens | None]],
) -> Callable[..., torch.Tensor]:
    """The V1 sampler's ``apply_penalties`` that counts what streams have forgotten.

    Args:
        apply_penalties: vLLM's.
        rows: of each row of the batch.
    """

    def apply(
        logits: torch.Tensor, metadata: Any, output_token_ids: list[list[int]]
    ) -> torch.Tensor:
        forgotten = [] if metadata.no_penalties else rows()
        if not any(forgotten):
            return apply_penalties(logits, metadata, output_token_ids)
        count, vocab_size = logits.shape
        _, prompt = get_token_bin_counts_and_mask(metadata.prompt_token_ids, vocab_size, count)
        outputs = _convert_to_tensors(output_token_ids, vocab_size, logits.device)
        outputs.masked_fill_(outputs == -1, vocab_size)
        counts, _ = get_token_bin_counts_and_mask(outputs, vocab_size, count)
        for row, gone in enumerate(forgotten):
            if gone is not None:
                prompt[row] |= gone.prompt.to(prompt.device)
                counts[row] += gone.output.to(counts.device)
        # As in vllm/model_executor/layers/utils.py.
        used = counts > 0
        _custom_ops.apply_repetition_penalties(logits, prompt, used, metadata.repetition_penalties)
        logits -= metadata.frequency_penalties.unsqueeze(1) * counts
        logits -= metadata.presence_penalties.unsqueeze(1) * used
        return logits

    return apply
