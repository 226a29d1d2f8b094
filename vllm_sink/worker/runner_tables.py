"""What the policy needs of a model runner, for both of vLLM's.

A runner keeps tables of its requests: tokens, lengths, blocks. Before a step, the tables of each
stream that rolled are set to the scheduler's lists (``vllm_sink/segments.py``); in every step a
stream's base is added to the positions of its tokens, which gives their true index, by which keys
are rotated and queries turned back. Slots and lengths stay bookkeeping indices.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Any

from vllm_sink.attention.row_policies import RowPolicies
from vllm_sink.policy import StreamPolicy
from vllm_sink.segments import StepRollovers, rollovers_of

if TYPE_CHECKING:
    from vllm.v1.core.sched.output import SchedulerOutput


class RunnerTables(RowPolicies):
    """The adapter of one model runner.

    Args:
        runner: vLLM's.
        default: ``S`` and ``W`` of a request that names neither.

    Attributes:
        count: rollovers so far.
    """

    def __init__(self, runner: Any, default: StreamPolicy) -> None:
        self.runner = runner
        self.default = default
        self.count = 0

    def before_step(self, scheduler_output: SchedulerOutput) -> None:
        """Bring the tables in line with the scheduler's lists."""
        rollovers = rollovers_of(scheduler_output)
        self.count += len(rollovers.rolled)
        self.update(scheduler_output, rollovers)

    @abstractmethod
    def update(self, scheduler_output: SchedulerOutput, rollovers: StepRollovers) -> None:
        """Forget the bases of streams that left, and rewrite what rolled."""
