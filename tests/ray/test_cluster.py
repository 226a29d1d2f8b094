"""Two replicas in a real Ray cluster: sessions reach their replica, and survive its loss."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.engines import tiny
from tests.e2e.servers import serve, until
from tests.ray.cluster import FLAGS, SINKS, WINDOW, Cluster, cluster
from tests.ray.sessions import Session, endless, hold
from vllm_sink import policy

pytest.importorskip("ray", reason="ray is not installed (the extra 'ray')")

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("ray")]

SESSIONS, TURNS = 32, 3

ADMISSIONS = "vllm_sink_admissions_total"

#: Of the tiny model.
LAYERS = 3


def bounded(tokens: list[int]) -> list[int]:
    """All that the next token depends on, however long the history was."""
    return policy.rebuild(tokens, SINKS, WINDOW, LAYERS)


@pytest.fixture(scope="module")
def expected(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> list[list[list[int]]]:
    """The sessions' answers from one plain server."""
    folder = tmp_path_factory.mktemp("plain")
    flags = [part for k, v in FLAGS.items() for part in (f"--{k}", v) if part != "true"]
    sessions = [Session(i) for i in range(SESSIONS)]
    with serve(tiny("llama-gqa", tiny_folder), folder / "log", *flags) as server:
        hold(server.url, sessions, TURNS)
    return [s.answers for s in sessions]


@pytest.fixture(scope="module")
def two(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with cluster(tmp_path_factory.mktemp("cluster"), tiny_folder) as it:
        it.run(min_replicas=2)
        yield it


def test_sessions_stay_where_their_cache_is(
    two: Cluster, expected: list[list[list[int]]], capsys: pytest.CaptureFixture[str]
) -> None:
    sessions = [Session(i) for i in range(SESSIONS)]
    hold(two.url, sessions, TURNS)
    assert [s.answers for s in sessions] == expected
    assert not any(s.reasons for s in sessions)
    admitted = _settled(two, ADMISSIONS, SESSIONS * TURNS)
    hits = two.by_replica("vllm_sink_prefix_hits_total", reach="window")
    with capsys.disabled():
        print(f"\nadmissions by replica {admitted}; of these with their window cached {hits}")
    # Each later turn found the whole of its session's window: on the replica that had it.
    assert len(admitted) == 2
    assert all(count and count % TURNS == 0 for count in admitted.values())
    assert hits == {r: n * (TURNS - 1) / TURNS for r, n in admitted.items()}


def test_streams_end_with_their_clients(two: Cluster) -> None:
    """A client closes its connection, and the stream's blocks are freed."""

    def live() -> float:
        return sum(two.by_replica("vllm_sink_streams").values())

    with endless(two.url, range(200, 206)):
        until(lambda: live() == 6, 120, every=0.5)
    until(lambda: live() == 0, 60, every=0.5)


def test_sessions_survive_their_replica(
    two: Cluster, expected: list[list[list[int]]], capsys: pytest.CaptureFixture[str]
) -> None:
    """One is killed amid the second turn; half of the sessions then send a bounded history."""
    before = set(two.by_replica(ADMISSIONS))
    victim = two.replica_processes()[0]
    heard = itertools.count(1)

    def listen(turn: int) -> None:
        if turn == 1 and next(heard) == 8 * SESSIONS:
            victim.kill()

    sessions = [
        Session(i, keep=bounded if i % 2 else lambda tokens: tokens, heard=listen)
        for i in range(SESSIONS)
    ]
    hold(two.url, sessions, TURNS)
    gaps = sorted(gap for s in sessions for gap in s.gaps)
    reasons = sorted({r for s in sessions for r in s.reasons})
    with capsys.disabled():
        print(f"\n{len(gaps)} streams moved; gaps {[round(g, 2) for g in gaps]} s; told {reasons}")
    assert [s.answers for s in sessions] == expected
    assert gaps
    assert statistics.median(gaps) < 30
    assert not any("without a reason" in r for r in reasons), reasons
    two.wait_for_replicas(2)
    hold(two.url, [Session(i) for i in range(100, 116)], 1)
    # The metrics show the new replica.
    until(lambda: set(two.by_replica(ADMISSIONS)) - before, 60, every=0.5)


def _settled(two: Cluster, name: str, total: float) -> dict[str, float]:
    """A metric by replica, once it adds up: Ray exports every second."""
    until(lambda: sum(two.by_replica(name).values()) >= total, 60, every=0.5)
    return two.by_replica(name)
