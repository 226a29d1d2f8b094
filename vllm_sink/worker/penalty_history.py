"""Penalties count every token of a stream, even those that have rolled out (V1 runner).

vLLM's V1 sampler counts the lists it holds at every step; a rollover shortens them, and the output
would depend on the segment. Tokens that leave are counted here, once: two vectors over the
vocabulary for each stream with a penalty, at any length. (The V2 runner counts tokens as they
come.)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from vllm import _custom_ops
from vllm.model_executor.layers.utils import get_token_bin_counts_and_mask
from vllm.v1.sample.ops.penalties import _convert_to_tensors


class PenaltyHistory:
    """Counts of the tokens of one stream that left the worker's lists.

    Attributes:
        prompt: bool [vocabulary], tokens of the prompt.
        output: int64 [vocabulary], how often each was generated.
    """

    def __init__(self, vocab_size: int) -> None:
        self.prompt = torch.zeros(vocab_size, dtype=torch.bool)
        self.output = torch.zeros(vocab_size, dtype=torch.int64)

    def add(self, prompt: Sequence[int], output: Sequence[int]) -> None:
        """Count tokens that leave the lists."""
        self.prompt[list(prompt)] = True
        self.output += torch.bincount(
            torch.tensor(output, dtype=torch.int64), minlength=len(self.output)
        )


def has_penalty(params: Any) -> bool:
    """Whether a request's sampling parameters have a penalty."""
    return bool(
        params.presence_penalty or params.frequency_penalty or params.repetition_penalty != 1.0
    )


def apply_with_history(
    histories: Sequence[PenaltyHistory | None],
    logits: torch.Tensor,
    metadata: Any,
    output_token_ids: list[list[int]],
) -> torch.Tensor:
    """Apply penalties over what a stream's lists hold and what has left them, in place.

    As ``apply_penalties`` in ``vllm/model_executor/layers/utils.py``.

    Args:
        histories: of each row of the batch.
        logits: [rows, vocabulary].
        metadata: vLLM's ``SamplingMetadata``.
        output_token_ids: of each row, what its list holds.
    """
    rows, vocab_size = logits.shape
    _, prompt = get_token_bin_counts_and_mask(metadata.prompt_token_ids, vocab_size, rows)
    outputs = _convert_to_tensors(output_token_ids, vocab_size, logits.device)
    outputs.masked_fill_(outputs == -1, vocab_size)
    counts, _ = get_token_bin_counts_and_mask(outputs, vocab_size, rows)
    for row, history in enumerate(histories):
        if history is not None:
            prompt[row] |= history.prompt.to(prompt.device)
            counts[row] += history.output.to(counts.device)
    used = counts > 0
    _custom_ops.apply_repetition_penalties(logits, prompt, used, metadata.repetition_penalties)
    logits -= metadata.frequency_penalties.unsqueeze(1) * counts
    logits -= metadata.presence_penalties.unsqueeze(1) * used
    return logits
