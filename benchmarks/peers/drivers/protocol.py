"""The drivers' protocol: one JSON object per line, a request on stdin, its answer on stdout.

Only the standard library, as in ``benchmarks.processes``: a driver runs in its peer's environment,
not in this project's.

    {"op": "load", "settings": {...}}       → {"versions": {...}, "notes": [...]}
    {"op": "begin", "prompts": [[id, …]]}   → {}          streams, each past the cache size
    {"op": "decode", "tokens": N, "seconds": T}
                                            → {"tokens", "seconds", "cpu_seconds", "rounds"}
    {"op": "score", "tokens": [id, …]}      → {"logprobs": [...]}
    {"op": "stream", "tokens": [id, …], "chunk": N}
                                            → {"logprobs": [...]}
    {"op": "memory"}                        → {"peak_bytes": …}
    {"op": "quit"}

An exception becomes ``{"error": "…"}``, and the driver continues.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from abc import ABC, abstractmethod
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from benchmarks.processes import family


@dataclass(frozen=True)
class Settings:
    """Settings common to all peers.

    model: the checkpoint's folder. gguf: the same model for llama.cpp.
    sink_tokens, cache_tokens: S and S + W, tokens.
    dtype: of weights and arithmetic, where the peer has a choice.
    streams: maximum number of concurrent streams.
    length: of a text scored in one piece; 0: what the peer has room for by default.
    """

    model: str
    gguf: str
    sink_tokens: int
    cache_tokens: int
    dtype: str
    streams: int
    length: int = 0

    @property
    def window_tokens(self) -> int:
        return self.cache_tokens - self.sink_tokens


class Peer(ABC):
    """One implementation under test. Streams decode greedily and never end by themselves."""

    #: Packages whose versions the result names.
    packages: tuple[str, ...] = ()
    #: What a reader of the figures must know.
    notes: tuple[str, ...] = ()

    @abstractmethod
    def load(self, settings: Settings) -> None:
        """Brings the model into memory."""

    def begin(self, prompts: list[list[int]]) -> None:
        """Replaces all streams by new ones, one a prompt."""
        raise NotImplementedError("this driver only scores")

    def step(self) -> int:
        """At least one more token of each stream; how many in all."""
        raise NotImplementedError("this driver only scores")

    def score(self, tokens: list[int]) -> list[float]:
        """Log-probability of each token but the first, teacher-forced under this peer's policy."""
        raise NotImplementedError("this driver cannot score")

    def stream(self, tokens: list[int], chunk: int) -> list[float]:
        """The same for a long text, ``chunk`` tokens per call if the peer can take several."""
        return self.score(tokens)

    def processes(self) -> list[int]:
        """Whose CPU time and memory count."""
        return list(family(os.getpid()))

    def close(self) -> None:  # noqa: B027 - most have started nothing
        """Ends what the peer started."""

    def decode(self, tokens: int, seconds: float) -> dict[str, Any]:
        """Steps until each stream had ``tokens`` tokens or ``seconds`` are over."""
        produced, steps = 0, 0
        before, begin = self.cpu_seconds(), time.perf_counter()
        while steps < tokens and time.perf_counter() - begin < seconds:
            produced += self.step()
            steps += 1
        return {
            "tokens": produced,
            "seconds": time.perf_counter() - begin,
            "cpu_seconds": self.cpu_seconds() - before,
            "steps": steps,
        }

    def cpu_seconds(self) -> float:
        """CPU time so far: on a machine with other work, the steadier of the two clocks."""
        ticks = os.sysconf("SC_CLK_TCK")
        total = 0.0
        for pid in self.processes():
            if pid == os.getpid():  # finer than /proc's hundredths
                used = resource.getrusage(resource.RUSAGE_SELF)
                total += used.ru_utime + used.ru_stime
                continue
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            total += (int(fields[11]) + int(fields[12])) / ticks
        return total

    def peak_bytes(self) -> int:
        """Largest resident memory of each process, added up."""
        total = 0
        for pid in self.processes():
            for line in Path(f"/proc/{pid}/status").read_text().splitlines():
                if line.startswith("VmHWM:"):
                    total += 1024 * int(line.split()[1])
        return total


def versions(packages: tuple[str, ...]) -> dict[str, str]:
    return {name: metadata.version(name) for name in packages}


def answer(peer: Peer, question: dict[str, Any]) -> dict[str, Any]:
    match question["op"]:
        case "load":
            peer.load(Settings(**question["settings"]))
            return {"versions": versions(peer.packages), "notes": list(peer.notes)}
        case "begin":
            peer.begin(question["prompts"])
            return {}
        case "decode":
            return peer.decode(question["tokens"], question["seconds"])
        case "score":
            return {"logprobs": peer.score(question["tokens"])}
        case "stream":
            return {"logprobs": peer.stream(question["tokens"], question["chunk"])}
        case "memory":
            return {"peak_bytes": peer.peak_bytes()}
        case other:
            raise ValueError(f"no such operation: {other}")


def serve(peer: Peer) -> None:
    """Answers until ``quit``. What the peer prints goes to stderr: stdout is the protocol's."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    try:
        for line in sys.stdin:
            question = json.loads(line)
            if question["op"] == "quit":
                break
            try:
                told = answer(peer, question)
            except Exception as error:
                told = {"error": f"{type(error).__name__}: {error}"}
            print(json.dumps(told), file=out, flush=True)
    finally:
        peer.close()
