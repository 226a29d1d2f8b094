"""A local Ray cluster with the application in it, and its metrics."""

from __future__ import annotations

import os
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from tests.e2e.engines import tiny
from tests.e2e.servers import free_port
from vllm_sink.commands.scrape import Metrics

SINKS, WINDOW = 4, 60

#: In the environment of the cluster's processes, as a Secret puts it there.
KEY = "a key of this test's"

FLAGS = {
    "served-model-name": "tiny",
    "dtype": "float32",
    "enforce-eager": "true",
    "max-num-seqs": "64",
    "kv-policy": "sink",
    "sink-tokens": str(SINKS),
    "window-tokens": str(WINDOW),
    "shutdown-timeout": "9",
}


def write_flags(folder: Path, model: Path, **more: str) -> Path:
    """The file that ``vllm serve --config`` and the application read."""
    flags = {"model": str(model), **FLAGS, **{k.replace("_", "-"): v for k, v in more.items()}}
    file = folder / "vllm.yaml"
    file.write_text("".join(f"{name}: {value}\n" for name, value in flags.items()))
    return file


class Cluster:
    """The application, served at ``url``."""

    def __init__(self, port: int, metrics_port: int, flags: Path) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self._metrics_url = f"http://127.0.0.1:{metrics_port}/metrics"
        self._flags = flags

    def run(self, **args: Any) -> None:
        """Deploy it with these arguments, or change them; until it serves."""
        from ray import serve

        from vllm_sink.serving.ray import app

        serve.run(app({"config": str(self._flags), "cpus": 0.5, **args}))

    def metrics(self) -> Metrics:
        """What Ray exports now."""
        with urllib.request.urlopen(self._metrics_url, timeout=30) as answer:
            return Metrics(answer.read().decode())

    def by_replica(self, name: str, **labels: str) -> dict[str, float]:
        """A metric's value, replica by replica."""
        found: dict[str, float] = {}
        for have, value in self.metrics().of(name, **labels):
            replica = have.get("ReplicaId") or have.get("replica", "")
            found[replica] = found.get(replica, 0.0) + value
        return found

    def replica_processes(self) -> list[psutil.Process]:
        """The processes of the model's replicas; children of this cluster's own raylet."""
        mine = psutil.Process(os.getpid()).children(recursive=True)
        return [p for p in mine if "ServeReplica:default:StreamServer" in " ".join(_line(p))]

    def wait_for_replicas(self, count: int, seconds: float = 300) -> None:
        """Wait until exactly this many replicas run."""
        from ray import serve

        end = time.monotonic() + seconds
        while True:
            told = serve.status().applications["default"].deployments["StreamServer:tiny"]
            states = {str(getattr(k, "value", k)): v for k, v in told.replica_states.items()}
            if states == {"RUNNING": count}:
                return
            assert time.monotonic() < end, told
            time.sleep(0.5)


def _line(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


@contextmanager
def cluster(folder: Path, tiny_folder: Path, cpus: int = 6) -> Iterator[Cluster]:
    """A cluster, with nothing deployed yet; gone afterwards with all its processes."""
    import ray
    from ray import serve

    model = tiny("llama-gqa", tiny_folder)
    port, metrics_port = free_port(), free_port()
    os.environ["VLLM_API_KEY"] = KEY
    before = {p.pid for p in psutil.Process().children(recursive=True)}
    ray.init(
        num_cpus=cpus,
        include_dashboard=False,
        log_to_driver=False,
        _metrics_export_port=metrics_port,
        _system_config={"metrics_report_interval_ms": 1000},
    )
    started = [p for p in psutil.Process().children(recursive=True) if p.pid not in before]
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        yield Cluster(port, metrics_port, write_flags(folder, model))
    finally:
        del os.environ["VLLM_API_KEY"]
        started += [p for p in psutil.Process().children(recursive=True) if p.pid not in before]
        serve.shutdown()
        ray.shutdown()
        for process in psutil.wait_procs(started, timeout=10)[1]:
            process.kill()
