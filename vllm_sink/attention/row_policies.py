"""What each row of a batch keeps, as vLLM's model runner has it."""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np
from vllm.v1.attention.backend import CommonAttentionMetadata

from vllm_sink.policy import StreamPolicy


class RowPolicies(ABC):
    """``S`` and ``W`` of each row of a step; a model runner's adapter knows them."""

    @abstractmethod
    def kept(self, step: CommonAttentionMetadata) -> np.ndarray:
        """Int32 [2, step.num_reqs], ``S`` and ``W``; the engine's own for padding."""


def repeated(policy: StreamPolicy, rows: int) -> np.ndarray:
    """Int32 [2, rows]: the same ``S`` and ``W`` for every row."""
    return np.repeat(np.array(policy, dtype=np.int32)[:, None], rows, axis=1)
