"""The container's command, run here as written: probes, key, limits, shutdown."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy.manifests import flags, one
from tests.e2e.engines import random_tokens, tiny
from tests.e2e.servers import VLLM, environment, free_port, until
from tests.monitoring.definitions import rules

pytestmark = pytest.mark.xdist_group("server")

KEY = "a key of this test's"

#: Seconds for streams to finish; the manifest's is minutes.
GRACE = 9

#: What must differ here: the model, what it is too small for, and how long a test may take.
HERE = {
    "window-tokens": 60,
    "shutdown-timeout": GRACE,
    "sink-tenant-max-streams": 3,
    "max-num-queued-reqs": 7,
}


class Container:
    """A pod's only container, as a process."""

    def __init__(self, spec: dict[str, Any], variables: dict[str, str], log: Path) -> None:
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        self.spec = spec
        self.log = log
        variables = {**_plain(spec["env"]), **variables}
        command = [
            re.sub(r"\$\((\w+)\)", lambda m: variables[m[1]], part) for part in spec["command"]
        ]
        (declared,) = (p["containerPort"] for p in spec["ports"])
        command = [str(port) if part == str(declared) else part for part in command]
        assert command[0] == "vllm"
        with log.open("w") as out:
            self.process = subprocess.Popen(
                [str(VLLM), *command[1:]],
                env=environment() | variables,
                stdout=out,
                stderr=out,
            )

    def probe(self, name: str) -> int:
        """The status that one of the manifest's probes gets; 0 for none."""
        probe = self.spec[name]
        try:
            with urllib.request.urlopen(
                self.url + probe["httpGet"]["path"], timeout=probe["timeoutSeconds"]
            ) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            return error.code
        except OSError:
            return 0

    def ask(self, tokens: int = 5, tenant: str = "me", **body: Any) -> Any:
        """An open streamed answer; ``urllib.error.HTTPError`` where it is refused."""
        headers = {"Content-Type": "application/json", "X-Tenant": tenant}
        headers |= {"Authorization": f"Bearer {body.pop('key', KEY)}"}
        asked = {
            "model": flags("cpu")["served-model-name"],
            "prompt": random_tokens(30),
            "max_tokens": tokens,
            "ignore_eos": True,
            "stream": True,
            **body,
        }
        request = urllib.request.Request(
            self.url + "/v1/completions", json.dumps(asked).encode(), headers
        )
        return urllib.request.urlopen(request, timeout=120)


def _plain(env: list[dict[str, Any]]) -> dict[str, str]:
    """Variables of a manifest that also apply on this machine."""
    mine = ("HOME", "HF_HOME")  # of the image
    return {e["name"]: e["value"] for e in env if "value" in e and e["name"] not in mine}


def _refusal(container: Container, **asked: Any) -> tuple[int, str]:
    with pytest.raises(urllib.error.HTTPError) as refused:
        container.ask(**asked)
    return refused.value.code, refused.value.read().decode()


@pytest.fixture(scope="module")
def container(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Container]:
    folder = tmp_path_factory.mktemp("container")
    file = folder / "vllm.yaml"
    model = {"model": str(tiny("llama-gqa", tiny_folder))}
    file.write_text(yaml.safe_dump({**flags("cpu"), **HERE, **model}))
    (spec,) = one("cpu", "Deployment")["spec"]["template"]["spec"]["containers"]
    variables = {"VLLM_SINK_CONFIG": str(file), "VLLM_API_KEY": KEY}
    it = Container(spec, variables, folder / "log")
    try:
        for _ in range(1200):
            if it.probe("startupProbe") == 200 or it.process.poll() is not None:
                break
            time.sleep(0.25)
        yield it
    finally:
        it.process.kill()
        it.process.wait()


def test_probes(container: Container) -> None:
    assert container.process.poll() is None, container.log.read_text()[-4000:]
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert container.probe(probe) == 200


def test_key(container: Container) -> None:
    assert _refusal(container, key="another")[0] == 401
    with container.ask() as answer:
        assert b"data: [DONE]" in answer.read()


def test_metrics_of_the_rules_are_there(container: Container) -> None:
    """After a first stream: an engine reports what it holds from its first step on."""
    with container.ask() as answer:
        assert b"data: [DONE]" in answer.read()
    with urllib.request.urlopen(container.url + "/metrics", timeout=30) as answer:
        text = answer.read().decode()
    wanted = {n for rule in rules() for n in re.findall(r"\(ray_\)\?(vllm_sink_\w+)", rule["expr"])}
    assert len(wanted) >= 7
    assert not [name for name in wanted if f"\n{name}{{" not in text]


def test_live_streams_of_a_tenant(container: Container) -> None:
    """Refused past the limit, by name; another tenant is not; a stream that ends makes room."""
    running = [container.ask(10**6) for _ in range(3)]
    try:
        for answer in running:
            answer.readline()
        status, told = _refusal(container, tokens=10**6)
        assert status == 429
        assert "tenant 'me' has 3 live streams and asks for 1 more" in told
        assert "allowed: 3 (--sink-tenant-max-streams)" in told
        status, told = _refusal(container, stream=False, tenant="other", n=4, tokens=10**6)
        assert status == 400  # more than the limit: retrying would not help
        assert "asks for 4 live streams at once; allowed: 3 (--sink-tenant-max-streams)" in told
        with container.ask(tenant="another") as answer:
            assert b"data: [DONE]" in answer.read()
    finally:
        for answer in running:
            answer.close()
    until(lambda: _served(container, tokens=1, endless=True), 30)


def _served(container: Container, tokens: int, endless: bool, **more: Any) -> bool:
    options = {"vllm_xargs": {"endless": endless}, **more}
    with suppress(urllib.error.HTTPError), container.ask(tokens, **options) as answer:
        return b"data: [DONE]" in answer.read()
    return False


def test_a_refused_request_counts_no_longer(container: Container) -> None:
    """Refused after the tenant's limits counted it, and nothing of it is left."""
    endless: dict[str, Any] = {"tokens": 10**6, "tenant": "brief", "stream": False}
    three = [random_tokens(30, seed=i) for i in range(3)]
    others = [container.ask(10**6, tenant=f"other {n}", n=n) for n in (2, 3)]
    try:
        for answer in others:
            answer.readline()
        for _ in range(3):
            # vLLM looks for room in its queue when it has been asked for a place among the
            # tenant's streams: for the first prompt's at once, for the third's in vain.
            assert _refusal(container, **endless, prompt=three)[0] == 503
            until(lambda: _served(container, tokens=1, endless=True, tenant="brief", n=2), 30)
    finally:
        for answer in others:
            answer.close()
    two = {"prompt": [random_tokens(30), random_tokens(10)], "vllm_xargs": {"sink_tokens": 29}}
    for _ in range(3):
        # The first prompt is a live stream when the second is refused.
        status, told = _refusal(container, **endless, **two)
        assert status == 400
        assert "0 to 10, the length of the prompt" in told
    # All three streams that the tenant may have are there to be had, at once.
    until(lambda: _served(container, tokens=1, endless=True, tenant="brief", n=3), 30)


def test_drain(container: Container) -> None:
    """SIGTERM under load: streams finish or end with the reason, new requests are refused."""
    short = container.ask(60)
    endless = container.ask(10**6, tenant="you")
    short.readline(), endless.readline()
    heard: dict[str, bytes] = {}
    readers = [
        threading.Thread(target=lambda n=name, a=answer: heard.update({n: a.read()}))
        for name, answer in (("short", short), ("endless", endless))
    ]
    for reader in readers:
        reader.start()
    container.process.send_signal(signal.SIGTERM)
    end = time.monotonic() + GRACE + 8
    until(lambda: container.probe("readinessProbe") == 503, 30)
    status, told = _refusal(container)
    assert status == 503
    assert "shutting down" in told
    for reader in readers:
        reader.join(end - time.monotonic())
    assert container.process.wait(end - time.monotonic()) == 0, container.log.read_text()[-2000:]
    assert b'"finish_reason":"length"' in heard["short"]
    assert b"error" not in heard["short"]
    *_, last, done = [line for line in heard["endless"].splitlines() if line]
    assert done == b"data: [DONE]"
    assert json.loads(last.removeprefix(b"data: "))["error"]["code"] == 503
    assert b"shutting down and the stream was still running" in last


#: A change of the file, and the one clear message it causes.
BAD = (
    ({"kv-policy": "sinks"}, "'sinks' is not allowed; allowed: one of full, window, sink"),
    ({}, "--sink-require-api-key: there is no key; allowed: one in VLLM_API_KEY"),
    (
        {"sink-tenant-label": "off"},
        "--sink-tenant-max-streams: 3 is not allowed; allowed: only with --sink-tenant-label or "
        "--sink-tenant-keys, which say who is who",
    ),
)


def test_bad_configuration(tiny_folder: Path, tmp_path: Path) -> None:
    """An unknown policy, a missing secret, a limit without tenants: one message, then exit."""
    model = {"model": str(tiny("llama-gqa", tiny_folder))}
    variables = {k: v for k, v in os.environ.items() if k != "VLLM_API_KEY"}
    started = []
    for i, (change, _) in enumerate(BAD):
        file = tmp_path / f"{i}.yaml"
        file.write_text(yaml.safe_dump({**flags("cpu"), **HERE, **model, **change}))
        command = [str(VLLM), "serve", "--config", str(file)]
        both = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        started.append(subprocess.Popen(command, env=variables, **both))
    for process, (_, said) in zip(started, BAD, strict=True):
        told = process.communicate(timeout=300)[0]
        assert process.returncode != 0
        assert said in " ".join(told.split())
        assert "Traceback" not in told
