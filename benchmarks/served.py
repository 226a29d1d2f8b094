"""A real ``vllm serve`` in processes of its own, and what can be read of it while it runs."""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from benchmarks.processes import family, signal_family

_TICKS = os.sysconf("SC_CLK_TCK")


def add_arguments(
    parser: argparse.ArgumentParser, segment_tokens: int, serve_args: str = "--enforce-eager"
) -> None:
    """Arguments of every benchmark of a server: the model, the policy, where the result goes."""
    parser.add_argument("--model", required=True, help="a model folder or name")
    parser.add_argument("--sink-tokens", type=int, default=4)
    parser.add_argument("--window-tokens", type=int, default=509)
    parser.add_argument("--segment-tokens", type=int, default=segment_tokens)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument(
        "--serve-args", default=serve_args, help="more flags of vllm serve: --serve-args='...'"
    )
    parser.add_argument("--json", required=True, type=Path, help="where the result goes")


def settings(args: argparse.Namespace) -> dict[str, Any]:
    """The same, as a result records them."""
    return {
        "model": Path(args.model).name,
        "dtype": args.dtype,
        "sink_tokens": args.sink_tokens,
        "window_tokens": args.window_tokens,
        "segment_tokens": args.segment_tokens,
    }


def flags(args: argparse.Namespace, *more: str, segment_tokens: int | None = None) -> list[str]:
    """The same, as ``vllm serve`` takes them; ``more`` come before ``--serve-args``."""
    segment = args.segment_tokens if segment_tokens is None else segment_tokens
    policy = (
        f"--kv-policy sink --sink-tokens {args.sink_tokens} --window-tokens {args.window_tokens} "
        f"--segment-tokens {segment} --served-model-name model --dtype {args.dtype}"
    )
    return [*policy.split(), *more, *args.serve_args.split()]


class Served:
    """A server that answers.

    url: where. process: its first process; the engine's are its children.
    """

    def __init__(self, url: str, process: subprocess.Popen[bytes]) -> None:
        self.url = url
        self.process = process

    def _open(self, path: str, body: dict[str, Any] | None = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(self.url + path, data, headers)
        try:
            return urllib.request.urlopen(request, timeout=3600)
        except urllib.error.HTTPError as error:
            raise RuntimeError(f"{path}: {error} {error.read(1000).decode()}") from None

    def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        with self._open(path, body) as answer:
            return dict(json.load(answer))

    def stream(self, path: str, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """The events of a streamed answer; closing the iterator is a client that leaves."""
        with self._open(path, {**body, "stream": True}) as answer:
            for line in answer:
                text = line.decode().strip()
                if text.startswith("data: ") and text != "data: [DONE]":
                    yield json.loads(text.removeprefix("data: "))

    def rollovers(self) -> int:
        """How many there were, by the first worker's count."""
        answer = self.post("/collective_rpc", {"method": "count_rollovers"})
        return int(answer["results"][0])

    def _metrics(self) -> str:
        with self._open("/metrics") as answer:
            text: str = answer.read().decode()
        return text

    def metric(self, name: str) -> float:
        """The sum of a metric's samples; zero if there is none yet."""
        values = re.findall(
            rf"^{re.escape(name)}(?:\{{.*\}})? (\S+)$", self._metrics(), re.MULTILINE
        )
        return sum(map(float, values))

    def kv_blocks(self) -> int:
        """Blocks of the KV pool that are in use."""
        text = self._metrics()
        usage = re.search(r"^vllm:kv_cache_usage_perc\{.*\} (\S+)$", text, re.MULTILINE)
        assert usage is not None
        return round(float(usage[1]) * (_pool(text, "num_gpu_blocks") - 1))

    def kv_pool_tokens(self) -> int:
        """Tokens that the KV pool has room for."""
        text = self._metrics()
        return _pool(text, "num_gpu_blocks") * _pool(text, "block_size")

    def memory(self) -> dict[str, int]:
        """Resident bytes of each process, by name: private ones and those shared with others.

        Without file pages: the kernel reclaims those at any time, on a busy machine 60 bytes per
        token within an hour.
        """
        found: dict[str, int] = {}
        for pid in family(self.process.pid):
            with suppress(OSError):  # it may just have ended
                status = Path(f"/proc/{pid}/status").read_text()
                resident = re.findall(r"^Rss(?:Anon|Shmem):\s+(\d+) kB$", status, re.MULTILINE)
                if resident:
                    found[_name(pid, self.process.pid)] = 1024 * sum(map(int, resident))
        return found

    def cpu_seconds(self) -> dict[str, float]:
        """CPU time of each process until now, by name: what a step costs on a shared machine."""
        found: dict[str, float] = {}
        for pid in family(self.process.pid):
            with suppress(OSError):  # it may just have ended
                fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                found[_name(pid, self.process.pid)] = (int(fields[11]) + int(fields[12])) / _TICKS
        return found

    def sleep(self) -> None:
        """Stop all of its processes, for less than vLLM's own deadlines."""
        signal_family(self.process.pid, signal.SIGSTOP)

    def wake(self) -> None:
        """Resume them."""
        signal_family(self.process.pid, signal.SIGCONT)


def _pool(metrics: str, field: str) -> int:
    """A number of vLLM's cache config."""
    pattern = r"^vllm:cache_config_info\{.*\b" + field + r'="(\d+)"'
    found = re.search(pattern, metrics, re.MULTILINE)
    assert found is not None
    return int(found[1])


def _name(pid: int, first: int) -> str:
    if pid == first:
        return "API server"
    command = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
    title = command.partition("\0")[0]
    if title.startswith("VLLM::"):
        return title
    # Python's own: it removes the shared memory of processes that died.
    return "resource tracker" if "resource_tracker" in command else f"{Path(title).name} {pid}"


@contextmanager
def serve(model: str, log: Path, flags: list[str]) -> Iterator[Served]:
    """``vllm serve MODEL FLAGS`` on a free port, from its first answer to its end."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    # Not the `vllm` command, which may be another environment's.
    vllm = [sys.executable, "-m", "vllm.entrypoints.cli.main"]
    command = [*vllm, "serve", model, "--host", "127.0.0.1", "--port", str(port), *flags]
    # The endpoint that reads a worker's count is one of vLLM's development endpoints.
    environment = {**os.environ, "VLLM_SERVER_DEV_MODE": "1", "VLLM_NO_USAGE_STATS": "1"}
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as out:
        process = subprocess.Popen(command, env=environment, stdout=out, stderr=out)
        served = Served(f"http://127.0.0.1:{port}", process)
        try:
            _wait_until_healthy(served, log)
            yield served
        finally:
            process.terminate()
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait_until_healthy(served: Served, log: Path) -> None:
    while served.process.poll() is None:
        try:
            with served._open("/health"):
                return
        except OSError:
            time.sleep(0.5)
    raise SystemExit(f"vllm serve did not come up; the end of {log}:\n{log.read_text()[-3000:]}")
