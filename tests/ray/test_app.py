"""The application's arguments and flags, its scaling, and what is refused immediately."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncGenerator, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.engines import tiny
from tests.ray.cluster import write_flags
from vllm_sink.errors import PolicyError, UnsupportedError
from vllm_sink.metrics.messages import StreamStats

ray = pytest.importorskip("ray", reason="ray is not installed (the extra 'ray')")

from ray.serve._private.common import DeploymentID, ReplicaID  # noqa: E402
from ray.serve.config import AutoscalingContext  # noqa: E402

from vllm_sink.serving.ray import app  # noqa: E402
from vllm_sink.serving.ray.autoscaling import LOAD, StreamLoad, report  # noqa: E402
from vllm_sink.serving.ray.settings import AppArgs, Flags  # noqa: E402

pytestmark = pytest.mark.xdist_group("ray")


@pytest.fixture(scope="module")
def small() -> Iterator[None]:
    """A cluster with room for one replica."""
    ray.init(num_cpus=3, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


def test_flags_are_vllms_own(tiny_folder: Path, tmp_path: Path) -> None:
    file = write_flags(
        tmp_path, tiny("llama-gqa", tiny_folder), sink_tenant_label="user", sink_max_tenants=7
    )
    flags = Flags.read(str(file))
    assert flags.model == str(tiny_folder / "llama-gqa")
    assert flags.served_name == "tiny"
    assert flags.grace() == {"graceful_shutdown_timeout_s": 9.0}
    assert flags.engine_kwargs == {
        "dtype": "float32",
        "enforce_eager": True,
        "max_num_seqs": 64,
        "additional_config": {
            "kv_policy": {"name": "sink", "sink_tokens": 4, "window_tokens": 60},
            "sink_tenancy": {"tenant_label": "user", "max_tenants": 7},
        },
    }


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ({"replicas": "2"}, "replicas: '2' is not allowed; allowed: one of config, min_replicas"),
        ({"min_replicas": "two"}, "min_replicas: 'two' is not allowed; allowed: an integer"),
        (
            {"min_replicas": True},
            "min_replicas: True is not allowed; allowed: an integer",
        ),
        ({"cpus": "-1"}, "cpus: '-1' is not allowed; allowed: a number of at least 0"),
        ({"min_replicas": "3", "max_replicas": "2"}, "max_replicas: 2 is not allowed; allowed: 3"),
        ({"target_load": "80"}, "target_load: '80' is not allowed; allowed: a number above 0"),
        ({"config": "/nowhere.yaml"}, "config: '/nowhere.yaml' is not allowed; allowed: a YAML"),
    ],
)
def test_bad_arguments(args: dict[str, Any], said: str, tmp_path: Path) -> None:
    (tmp_path / "vllm.yaml").touch()
    with pytest.raises(PolicyError) as refused:
        AppArgs.read({"config": str(tmp_path / "vllm.yaml"), **args})
    assert said in str(refused.value)


@pytest.mark.parametrize(
    ("flags", "args", "said"),
    [
        ({"kv_policy": "sinks"}, {}, "'sinks' is not allowed; allowed: one of full, window, sink"),
        ({"kv_policy": "full"}, {}, "for vLLM unchanged there is ray.serve.llm:build_openai_app"),
        ({"windows": "8"}, {}, "unrecognized arguments: --windows"),
        ({"api_key": "secret"}, {}, "--api-key has no effect behind Ray: a key in a file is in"),
        (
            {"sink_require_api_key": "true"},
            {},
            "--sink-require-api-key: there is no key; allowed: one in VLLM_API_KEY",
        ),
        ({}, {"min_replicas": 2}, "they and the ingress need 5 CPU of 3 that Ray has"),
    ],
)
def test_refused_when_deployed(
    flags: dict[str, str],
    args: dict[str, Any],
    said: str,
    small: None,
    tiny_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("VLLM_API_KEY", raising=False)
    file = write_flags(tmp_path, tiny("llama-gqa", tiny_folder), **flags)
    with pytest.raises((PolicyError, UnsupportedError)) as refused:
        app({"config": str(file), "wait_for_resources_s": 0, **args})
    assert said in str(refused.value)


def test_what_is_waited_for_is_said(
    small: None, tiny_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = write_flags(tmp_path, tiny("llama-gqa", tiny_folder))
    with pytest.raises(PolicyError, match="min_replicas: 2 is not allowed"):
        app({"config": str(file), "wait_for_resources_s": 0.1, "min_replicas": 2})
    assert "need 5 CPU of 3 that Ray has: waiting up to 0.1 s" in caplog.text


def _stats(held: int, reserved: int) -> StreamStats:
    return StreamStats(
        streams=3,
        sink_blocks=2,
        window_blocks=held - 2,
        free_blocks=100 - held,
        reserved_blocks=reserved,
    )


def test_load_is_what_streams_hold_and_were_promised() -> None:
    assert report(None)[LOAD] == 0
    assert report(_stats(held=30, reserved=20))[LOAD] == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("loads", "target", "wanted"),
    [
        ([0.9], 1, 2),
        ([0.9, 0.0], 2, 2),
        ([0.8, 0.8], 2, 2),
        ([0.1, 0.2, 0.1], 3, 1),
        ([0.0], 1, 1),
        ([], 2, 2),
    ],
)
def test_so_many_replicas_that_each_is_filled_to_the_target(
    loads: list[float], target: int, wanted: int
) -> None:
    deployment = DeploymentID(name="StreamServer:tiny", app_name="default")
    replicas = [ReplicaID(str(i), deployment) for i in range(len(loads))]
    context = AutoscalingContext(
        deployment_id=deployment,
        deployment_name=deployment.name,
        app_name=deployment.app_name,
        current_num_replicas=len(loads),
        target_num_replicas=target,
        running_replicas=replicas,
        total_num_requests=0.0,
        total_queued_requests=0.0,
        aggregated_metrics={LOAD: dict(zip(replicas, loads, strict=True))},
        raw_metrics=None,
        capacity_adjusted_min_replicas=1,
        capacity_adjusted_max_replicas=4,
        policy_state={},
        last_scale_up_time=None,
        last_scale_down_time=None,
        current_time=None,
        config=None,
    )
    assert StreamLoad(0.8)(context)[0] == wanted


@pytest.mark.parametrize("begun", [False, True])
def test_an_answer_ends_with_its_client(begun: bool) -> None:
    """Ray cancels the replica's task when a client disconnects; the engine's stream ends too."""
    from vllm_sink.serving.ray.replica import with_reasons

    ends: list[str] = []

    async def stream() -> AsyncGenerator[str, None]:
        try:
            yield "a token"
            await asyncio.Event().wait()
        finally:
            ends.append("closed")

    async def leave() -> None:
        answer = with_reasons(stream(), streamed=True)
        assert await anext(answer) == "a token"
        if begun:  # to wait for the next
            waiting = asyncio.ensure_future(anext(answer))
            await asyncio.sleep(0.01)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
        else:
            await answer.aclose()
        assert ends == ["closed"]

    asyncio.run(leave())


def test_importing_it_imports_no_engine() -> None:
    """Ray imports the application where there may be no GPU."""
    script = "import sys, vllm_sink.serving.ray; sys.exit('vllm' in sys.modules)"
    assert (
        subprocess.run([sys.executable, "-c", script], env=os.environ, check=False).returncode == 0
    )
