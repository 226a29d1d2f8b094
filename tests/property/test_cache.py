"""Random streams through vLLM's real KV cache manager, and proof that the rules can fail.

``driver.py`` says what is checked, and after which step. A failure names its seed: ``Run(seed)()``
repeats it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import cache
from typing import Any

import pytest
from vllm.v1.core.kv_cache_utils import KVCacheBlock

from tests.property.driver import Run, Violation, visible
from vllm_sink import policy
from vllm_sink.cache.manager import SinkWindowManager
from vllm_sink.policy import StreamPolicy

RUNS, SHARDS = 2400, 8
EVENTS = (
    "admitted",
    "refused",
    "hits",
    "hits with a hole",
    "preempted",
    "aborted",
    "rolled",
)


def run(seed: int, **options: Any) -> Counter[str]:
    """What happened in one run; a broken rule is raised with the run's seed."""
    try:
        return Run(seed, **options)()
    except Violation as violation:
        violation.add_note(f"seed {seed}")
        raise


def sweep(seeds: range, **options: Any) -> dict[int, Counter[str]]:
    """Runs by seed, up to the first that breaks a rule."""
    return {seed: run(seed, **options) for seed in seeds}


@cache
def shard_counts(shard: int) -> dict[int, Counter[str]]:
    """The runs of one shard."""
    return sweep(range(shard * RUNS // SHARDS, (shard + 1) * RUNS // SHARDS))


@pytest.mark.parametrize("shard", range(SHARDS))
def test_rules_hold(shard: int) -> None:
    """Blocks are counted, seen only by their streams, bounded, and all free at the end."""
    counts = sum(shard_counts(shard).values(), Counter[str]())
    # The runs covered what they are for.
    for event in EVENTS:
        assert counts[event] >= RUNS // SHARDS // 4, event
    assert counts["restarted"] >= RUNS // SHARDS // 20


def test_two_keys_are_the_same_below_the_smaller_sum_of_sinks_and_window() -> None:
    """The shadow's own premise, and why blocks are shared there: both tokens see everything."""
    every = [StreamPolicy(sinks, window) for window in (1, 3, 8) for sinks in range(6)]
    for one in every:
        for other in every:
            both = min(one.sees_everything_below, other.sees_everything_below)
            for t in range(both):
                assert visible(t, *one) == visible(t, *other) == set(range(t + 1))
            if one.sees_everything_below != other.sees_everything_below:
                assert visible(both, *one) != visible(both, *other)


# -- managers broken on purpose --------------------------------------------------------------------


class FreesOneBlockEarly(SinkWindowManager):
    """The first block of the window is freed too."""

    def remove_skipped_blocks(
        self, request_id: str, processed_computed_tokens: int, num_prompt_tokens: int | None = None
    ) -> None:
        later = processed_computed_tokens + self.block_size
        super().remove_skipped_blocks(request_id, later, num_prompt_tokens)


class FreesOneTokenEarly(SinkWindowManager):
    """The window is one token short."""

    def remove_skipped_blocks(
        self, request_id: str, processed_computed_tokens: int, num_prompt_tokens: int | None = None
    ) -> None:
        super().remove_skipped_blocks(request_id, processed_computed_tokens + 1, num_prompt_tokens)


class ForgetsSinks(SinkWindowManager):
    """The last sink block is not pinned."""

    def remove_skipped_blocks(
        self, request_id: str, processed_computed_tokens: int, num_prompt_tokens: int | None = None
    ) -> None:
        stream = self.stream(request_id)
        kept = stream.kept
        fewer = max(0, kept.sink_tokens - self.block_size)
        stream.kept = kept._replace(sink_tokens=fewer)
        super().remove_skipped_blocks(request_id, processed_computed_tokens, num_prompt_tokens)
        stream.kept = kept


class KeepsOneBlock(SinkWindowManager):
    """A block stays behind the window."""

    def remove_skipped_blocks(
        self, request_id: str, processed_computed_tokens: int, num_prompt_tokens: int | None = None
    ) -> None:
        earlier = max(0, processed_computed_tokens - self.block_size)
        super().remove_skipped_blocks(request_id, earlier, num_prompt_tokens)


class TakesHitsUntouched(SinkWindowManager):
    """A hit's blocks are used without a reference: the pool may reallocate them."""

    def add_local_computed_blocks(
        self,
        request_id: str,
        new_computed_blocks: Sequence[KVCacheBlock],
        num_local_computed_tokens: int,
        num_external_computed_tokens: int,
    ) -> None:
        self.enable_caching = False
        super().add_local_computed_blocks(
            request_id, new_computed_blocks, num_local_computed_tokens, num_external_computed_tokens
        )
        self.enable_caching = True


class Leaks(SinkWindowManager):
    """One block of a finished request stays."""

    def pop_blocks_for_free(self, request_id: str) -> list[KVCacheBlock]:
        return super().pop_blocks_for_free(request_id)[:-1]


class Miscounts(SinkWindowManager):
    """A recycled block is still counted as held."""

    def remove_skipped_blocks(
        self, request_id: str, processed_computed_tokens: int, num_prompt_tokens: int | None = None
    ) -> None:
        held = self.stream(request_id).held
        super().remove_skipped_blocks(request_id, processed_computed_tokens, num_prompt_tokens)
        self.stream(request_id).held = held


class RollsAWindowBlockOut(SinkWindowManager):
    """A rollover takes the first block of the window as well."""

    def drop_recycled(self, request_id: str) -> tuple[int, int]:
        first, end = super().drop_recycled(request_id)
        blocks = self.req_to_blocks[request_id]
        if end > first and first < len(blocks):
            blocks.pop(first)
        return first, end


class LooksUpTooLittle(SinkWindowManager):
    """A hit whose first window block is never checked."""

    @classmethod
    def find_longest_cache_hit(cls, *args: Any, **kwargs: Any) -> Any:
        (blocks,), length = super().find_longest_cache_hit(*args, **kwargs)
        null = kwargs["block_pool"].null_block
        spec = kwargs["kv_cache_spec"]
        first = policy.window_block(length, spec.window_tokens, spec.block_size)
        return ([null if i == first else b for i, b in enumerate(blocks)],), length


class NeverAdmits(SinkWindowManager):
    """Admission asks for more than there is."""

    def blocks_to_start(self, request_id: str, num_tokens: int) -> int:
        return 1 << 20


WRONG: dict[type[SinkWindowManager], str] = {
    FreesOneBlockEarly: "freed",
    FreesOneTokenEarly: "freed",
    ForgetsSinks: "freed",
    KeepsOneBlock: "bound",
    TakesHitsUntouched: "count",
    Leaks: "count",
    Miscounts: "count",
    RollsAWindowBlockOut: "count",
    LooksUpTooLittle: "freed",
    NeverAdmits: "progress",
}


@pytest.mark.parametrize("wrong", WRONG, ids=lambda wrong: wrong.__name__)
def test_a_wrong_manager_is_seen(wrong: type[SinkWindowManager]) -> None:
    """Few runs are enough to detect each of these, by the rule that it breaks."""
    with pytest.raises(Violation) as seen:
        sweep(range(60), manager_class=wrong)
    assert seen.value.rule == WRONG[wrong]


def test_hashes_without_sinks_and_windows_are_seen() -> None:
    """Sharing blocks among different S beyond where they see the same gives wrong keys."""
    with pytest.raises(Violation) as seen:
        sweep(range(60), name_kept=False)
    assert seen.value.rule in ("content", "freed")
