"""A real ``vllm serve`` in a process of its own, and plain HTTP."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.e2e import forked

VLLM = Path(sys.executable).with_name("vllm")


def environment() -> dict[str, str]:
    """As a user runs it: the engine in processes of its own."""
    return {k: v for k, v in os.environ.items() if k != "VLLM_ENABLE_V1_MULTIPROCESSING"} | {
        "VLLM_LOGGING_LEVEL": "INFO"
    }


def run_vllm(*arguments: str, timeout: float = 120) -> subprocess.CompletedProcess[str]:
    """Run ``vllm`` to its end, which is near: it refuses, or prints its help."""
    entry = "vllm.entrypoints.cli.main:main"
    return forked.run(entry, *arguments, env=environment(), timeout=timeout)


class Server:
    """A server that answers at ``url``."""

    def __init__(self, url: str, log: Path, process: subprocess.Popen[bytes] | None = None) -> None:
        self.url = url
        self.log = log
        self.process = process

    def post(
        self, path: str, body: dict[str, Any], key: str | None = None
    ) -> tuple[int, dict[str, Any]]:
        """Status and JSON of an answer, errors included."""
        headers = {"Content-Type": "application/json"}
        headers |= {} if key is None else {"Authorization": f"Bearer {key}"}
        request = urllib.request.Request(self.url + path, json.dumps(body).encode(), headers)
        try:
            with urllib.request.urlopen(request, timeout=300) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)

    def stream(self, path: str, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """The events of a streamed answer."""
        request = urllib.request.Request(
            self.url + path,
            json.dumps({**body, "stream": True}).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=300) as answer:
            for line in answer:
                text = line.decode().strip()
                if text.startswith("data: ") and text != "data: [DONE]":
                    yield json.loads(text.removeprefix("data: "))


def free_port() -> int:
    """A free port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def until(true: Callable[[], object], seconds: float, every: float = 0.1) -> None:
    """Wait for a condition; an AssertionError after a timeout."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, f"not within {seconds} s"
        time.sleep(every)


@contextmanager
def serve(model: Path, log: Path, *flags: str) -> Iterator[Server]:
    """``vllm serve MODEL FLAGS`` on a free port, from its first answer to its end."""
    port = free_port()
    command = [str(VLLM), "serve", str(model), "--host", "127.0.0.1", "--port", str(port), *flags]
    with log.open("w") as out:
        process = subprocess.Popen(command, env=environment(), stdout=out, stderr=out)
        try:
            url = f"http://127.0.0.1:{port}"
            _wait_until_healthy(url, process, log)
            yield Server(url, log, process)
        finally:
            process.terminate()
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait_until_healthy(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(3000):
        if process.poll() is not None:
            break
        try:
            with urllib.request.urlopen(url + "/health", timeout=5):
                return
        except OSError:
            try:
                process.wait(0.1)
            except subprocess.TimeoutExpired:
                continue
    raise RuntimeError(f"vllm serve did not come up:\n{log.read_text()[-4000:]}")
