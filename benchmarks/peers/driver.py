"""A running driver: started in its peer's environment, queried by lines of JSON."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.peers import env
from benchmarks.processes import family, signal_family

#: One compute thread for every peer, and nothing from the network.
ALIKE = {
    "OMP_NUM_THREADS": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
}


class DriverError(RuntimeError):
    """The error of a peer that failed."""


class Driver:
    """One peer in a process of its own.

    module: of ``benchmarks.peers.drivers``. environment: of ``build/peers``, or None: this one.
    log: where what it prints goes.
    """

    def __init__(
        self, module: str, environment: str | None, log: Path, variables: dict[str, str]
    ) -> None:
        python = sys.executable if environment is None else str(env.python(environment))
        log.parent.mkdir(parents=True, exist_ok=True)
        self.log = log
        with log.open("a") as out:
            self.process = subprocess.Popen(
                [python, "-m", f"benchmarks.peers.drivers.{module}"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=out,
                text=True,
                cwd=env.ROOT,
                env=os.environ | ALIKE | variables | {"PYTHONPATH": str(env.ROOT)},
            )

    def ask(self, op: str, **what: Any) -> dict[str, Any]:
        """One question and its answer."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        with self.awake():
            try:
                self.process.stdin.write(json.dumps({"op": op, **what}) + "\n")
                self.process.stdin.flush()
                line = self.process.stdout.readline()
            except BrokenPipeError:
                line = ""
        if not line:
            raise DriverError(
                f"ended by itself; the end of its log:\n{self.log.read_text()[-2000:]}"
            )
        told: dict[str, Any] = json.loads(line)
        if "error" in told:
            raise DriverError(told["error"])
        return told

    @contextmanager
    def awake(self) -> Iterator[None]:
        """Stop all peers but the active one: some poll while they wait."""
        signal_family(self.process.pid, signal.SIGCONT)
        try:
            yield
        finally:
            signal_family(self.process.pid, signal.SIGSTOP)

    def stop(self) -> None:
        """Ends it and what it started."""
        if self.process.poll() is not None:
            return
        members = list(family(self.process.pid))
        signal_family(self.process.pid, signal.SIGCONT)
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps({"op": "quit"}) + "\n")
            self.process.stdin.close()
            self.process.wait(30)
        except (BrokenPipeError, subprocess.TimeoutExpired):
            pass
        for pid in reversed(members):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        self.process.wait()
