"""``/metrics`` of a real server: as Prometheus reads it, by tenant, in the log, switched off."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
import urllib.request
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.e2e.engines import random_tokens, tiny
from tests.e2e.servers import Server, run_vllm, serve
from vllm_sink.tenancy.labels import hashed

pytestmark = pytest.mark.xdist_group("server")

FLAGS = (
    "--kv-policy sink --sink-tokens 4 --window-tokens 60 --served-model-name tiny "
    "--dtype float32 --enforce-eager --max-num-seqs 16"
)


def _text(server: Server) -> str:
    with urllib.request.urlopen(server.url + "/metrics", timeout=30) as answer:
        return answer.read().decode()


def _value(text: str, name: str, **labels: str) -> float:
    """The sum of the samples of a name whose labels include these."""
    found = [
        sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    ]
    assert found, f"no {name} with {labels}"
    return sum(found)


def _ask(server: Server, tokens: int, output: int, tenant: str | None = None, **body: str) -> None:
    request = urllib.request.Request(
        server.url + "/v1/completions",
        json.dumps(
            {
                "model": "tiny",
                "prompt": random_tokens(tokens, seed=time.monotonic_ns()),
                "max_tokens": output,
                "ignore_eos": True,
                **body,
            }
        ).encode(),
        {"Content-Type": "application/json", **({"X-Tenant": tenant} if tenant else {})},
    )
    with urllib.request.urlopen(request, timeout=120) as answer:
        assert answer.status == 200


def _lint(text: str) -> list[str]:
    """promtool's complaints about this project's metrics. It rejects the colons in vLLM's own."""
    if shutil.which("promtool") is None:
        pytest.skip("promtool is not installed (Debian: prometheus)")
    told = subprocess.run(
        ["promtool", "check", "metrics"], input=text, capture_output=True, text=True, check=False
    )
    problems = (told.stdout + told.stderr).splitlines()
    assert not any("error while linting" in line for line in problems), problems
    return [line for line in problems if "vllm_sink" in line]


def test_one_server(tiny_folder: Path, tmp_path: Path) -> None:
    """Before the first request; counters, the label from a header, the linter, both log lines."""
    flags = [*FLAGS.split(), "--sink-tenant-label", "header:X-Tenant", "--sink-max-tenants", "2"]
    flags += ["--sink-tenant-names", "plain"]
    with serve(tiny("llama-gqa", tiny_folder), tmp_path / "log", *flags) as server:
        idle = _text(server)
        assert _value(idle, "vllm_sink_streams") == 0
        for i in range(6):
            _ask(server, 100, 51, tenant=f"customer-{i % 3}")
        _ask(server, 100, 51)
        text = _text(server)
        assert _lint(text) == []
        free = {kind: _value(idle, "vllm_sink_blocks", kind=kind) for kind in ("free", "window")}
        assert free == {"free": _value(text, "vllm_sink_blocks", kind="free"), "window": 0}
        assert _value(text, "vllm_sink_tokens_evicted_total") == 7 * (150 - 64)
        info = {"policy": "sink", "sink_tokens": "4", "window_tokens": "60"}
        info |= {"native_context": "128", "attention_provider": "torch"}
        assert _value(text, "vllm_sink_info", model_name="tiny", engine="0", **info) == 1
        by_tenant = {
            t: _value(text, "vllm_sink_tenant_tokens_total", tenant=t)
            for t in ("customer-0", "customer-1", "other", "none")
        }
        assert by_tenant == {"customer-0": 300, "customer-1": 300, "other": 300, "none": 150}
        assert "customer-2" not in text
        assert _value(text, "vllm_sink_tenant_streams") == 0
        _wait_for_line(server)
    log = server.log.read_text()
    assert "attention provider: torch" in log
    assert "streams fit in" in log


def _wait_for_line(server: Server) -> None:
    """vLLM logs every ten seconds."""
    for _ in range(250):
        for line in server.log.read_text().splitlines():
            if "KV cache usage" in line and "Running" in line:
                assert "Streams: 0 (0 past the context), KV blocks: 0 sink, 0 window, " in line
                assert "Churn: " in line
                assert line.endswith("blocks/s")
                return
        time.sleep(0.1)
    raise AssertionError("vLLM's periodic line did not come")


def test_several_api_processes(tiny_folder: Path, tmp_path: Path) -> None:
    """Each gets some of the messages; their sum is right."""
    flags = [*FLAGS.split(), "--api-server-count", "2", "--sink-tenant-label", "user"]
    with serve(tiny("llama-gqa", tiny_folder), tmp_path / "log", *flags) as server:
        for i in range(8):  # a new connection each: either process may take it
            _ask(server, 100, 51, user="me" if i % 2 else "you")
        status, answer = server.post(
            "/v1/completions", {"model": "tiny", "prompt": [9], "vllm_xargs": {"sink_tokens": -1}}
        )
        assert status == 400, answer  # each process knows the policy
        time.sleep(1.0)
        text = _text(server)
    assert _lint(text) == []
    assert _value(text, "vllm_sink_tokens_evicted_total") == 8 * (150 - 64)
    assert _value(text, "vllm_sink_stream_tokens_sum") == 8 * 151
    assert _value(text, "vllm_sink_tenant_tokens_total", tenant=hashed("me")) == 4 * 150
    assert '"me"' not in text
    assert _value(text, "vllm_sink_streams") == 0
    assert _value(text, "vllm_sink_info") == 1


def test_statistics_switched_off(tiny_folder: Path, tmp_path: Path) -> None:
    """``--disable-log-stats`` is respected, and the log names what is missing."""
    flags = [*FLAGS.split(), "--disable-log-stats"]
    with serve(tiny("llama-gqa", tiny_folder), tmp_path / "log", *flags) as server:
        _ask(server, 100, 51)
        text = _text(server)
    assert "vllm_sink_" not in text
    assert "vllm:" not in text
    told = [line for line in server.log.read_text().splitlines() if "--disable-log-stats:" in line]
    assert len(told) == 1
    assert "no vllm_sink_* metrics" in told[0]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (
            "--kv-policy sink --sink-tenant-label me",
            "'me' is not allowed; allowed: off, user, key, or header:NAME",
        ),
        ("--sink-tenant-label user", "--sink-tenant-label needs --kv-policy"),
        ("--kv-policy sink --sink-max-tenants 0", "--sink-max-tenants: '0' is not allowed"),
    ],
)
def test_bad_flags(tiny_folder: Path, flags: str, said: str) -> None:
    ended = run_vllm("serve", str(tiny("llama-gqa", tiny_folder)), *flags.split())
    assert ended.returncode != 0
    assert said in ended.stderr + ended.stdout
