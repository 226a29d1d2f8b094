"""Nothing grows with a stream: what the process holds after many rollovers is what it held.

Engine, worker and front end are in this process, the pool is so small that every block has been
used before counting begins, and the streams are in step, so all lists have the same length at both
ends.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from vllm.sampling_params import RequestOutputKind

from tests.e2e.engines import greedy, prompt, random_tokens, scheduler_of, tiny
from tests.e2e.growth import Held
from tests.e2e.streams import SAMPLING, rolling
from vllm_sink.engine.rollover import RollingStreams
from vllm_sink.streaming import output_trimming

# One worker: the tests share an engine.
# It counts what its process holds, so it needs a process in which no other test has run.
pytestmark = [pytest.mark.xdist_group("growth"), pytest.mark.slow]

#: Half of them are streamed; of the others vLLM holds the answer, as it was asked to.
STREAMS = 16
#: How often each rolls before counting, and between two counts.
BEFORE, BETWEEN = 1, 9
#: Bytes per token that count as none.
NOTHING = 0.25


class Streams:
    """Endless streams that roll at the same steps, and short requests beside them."""

    def __init__(self, llm: Any) -> None:
        self.core, self.scheduler = llm.llm_engine, scheduler_of(llm)
        self.tokens = self.short = 0
        ways = [SAMPLING[name] for name in ("seed", "top_k, logit bias", "presence", "bad words")]
        for i in range(STREAMS):
            params = ways[i // 2 % len(ways)].clone()
            params.max_tokens = None
            params.output_kind = RequestOutputKind.DELTA if i % 2 else RequestOutputKind.FINAL_ONLY
            params.logprobs = 0 if i < 4 else None
            self.core.add_request(f"stream-{i}", prompt(random_tokens(20, seed=i)), params)

    def roll(self, times: int) -> None:
        """Until each has rolled so often."""
        until = self.scheduler.rollovers + times * STREAMS
        while self.scheduler.rollovers < until:
            self._step()
            if self.tokens % (40 * STREAMS) == 0:
                short = prompt(random_tokens(9, seed=self.short))
                self.core.add_request(f"short-{self.short}", short, greedy(5))
                self.short += 1
        for _ in range(10):  # the last short one ends
            self._step()

    def _step(self) -> None:
        self.core.step()
        self.tokens += STREAMS

    def count(self) -> Held:
        states = self.core.output_processor.request_states.values()
        kept = [s for s in states if s.output_kind == RequestOutputKind.FINAL_ONLY]
        assert len(states) == STREAMS == 2 * len(kept)
        answers = [(s.detokenizer.token_ids, s.detokenizer.output_text) for s in kept]
        return Held([*answers, *(s.logprobs_processor.logprobs for s in kept)])


@pytest.fixture(scope="module")
def streams(tiny_folder: Path) -> Iterator[Streams]:
    settings = {"max_num_seqs": STREAMS + 4, "num_gpu_blocks_override": 120}
    with (
        pytest.MonkeyPatch.context() as patch,
        rolling(tiny("llama-gqa", tiny_folder), disable_log_stats=False, **settings) as llm,
    ):
        patch.setattr(output_trimming, "KEEP", 20)
        patch.setattr(output_trimming, "EVERY", 21)  # as much is kept at any moment
        running = Streams(llm)
        running.roll(BEFORE)
        pool = running.scheduler.kv_cache_manager.block_pool
        assert running.tokens > pool.num_gpu_blocks * running.scheduler.block_size
        yield running
        running.core.abort_request([f"stream-{i}" for i in range(STREAMS)])
        while running.core.has_unfinished_requests():
            running.core.step()
        running.core.step()


def _grown(streams: Streams, before: Held, rollovers: int) -> tuple[float, Held]:
    """Bytes a token, until the streams have rolled some more."""
    tokens = streams.tokens
    streams.roll(rollovers)
    after = streams.count()
    return (after.total - before.total) / (streams.tokens - tokens), after


def test_nothing_grows_and_leaks_are_seen(
    streams: Streams, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = streams.count()
    per_token, after = _grown(streams, before, BETWEEN)
    assert abs(per_token) < NOTHING, after.grown_since(before)

    # A streamed answer is kept, and so is what a rollover cuts.
    monkeypatch.setattr(output_trimming, "EVERY", 1 << 40)
    cut, kept = RollingStreams._cut, []

    def keeps(self: Any, request: Any, a: int, b: int, prompt_cut: int) -> None:
        kept.append(request._all_token_ids[a:b])
        cut(self, request, a, b, prompt_cut)

    monkeypatch.setattr(RollingStreams, "_cut", keeps)
    per_token, leaking = _grown(streams, after, 2)
    assert per_token > 8
    told = leaking.grown_since(after)
    assert "list in FastDetokenizer" in told
    assert "list in list in cell" in told
