"""Seeded requests whose prompt is prefilled in chunks, on the CPU.

vLLM samples after every chunk and, for all but the last, winds the request's generator back by the
numbers drawn (``GPUModelRunner._bookkeeping_sync``). A CPU generator has no offset, so the engine
dies, and every stream with it. A generator that remembers its state needs no offset.

Upstream: none known of vLLM itself ("CPU Generator does not use offset" in qualcomm/vllm-qaic#92).
Can go when the V1 runner does not draw for rows whose prompt is not complete.
"""

from __future__ import annotations

from typing import Any

import torch


class RewindableGenerator(torch.Generator):
    """A CPU generator that goes back to where it last stood when its offset is set."""

    _state: torch.Tensor

    @classmethod
    def of(cls, generator: torch.Generator) -> RewindableGenerator:
        """A generator in the same state; the same one if it can be wound back already."""
        if isinstance(generator, cls):
            return generator
        made = cls()
        made.set_state(generator.get_state())
        return made

    def remember(self) -> None:
        self._state = self.get_state()

    def get_offset(self) -> int:
        return 0

    def set_offset(self, offset: int) -> None:
        """Go back to the remembered state: vLLM only ever undoes the last draw."""
        del offset
        self.set_state(self._state)


def prepare_discarded_draws(runner: Any) -> None:
    """Before a step is sampled: let the generators of unfinished prefills be wound back.

    Args:
        runner: vLLM's V1 model runner.
    """
    batch = runner.input_batch
    for row, generator in batch.generators.items():
        if runner.discard_request_mask.np[row]:
            rewindable = RewindableGenerator.of(generator)
            rewindable.remember()
            batch.generators[row] = rewindable
            runner.requests[batch.req_ids[row]].generator = rewindable
