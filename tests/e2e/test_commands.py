"""``vllm-sink plan``, ``stream`` and ``top`` as a user runs them, against a real server."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.engines import tiny
from tests.e2e.servers import Server, environment, serve

pytestmark = pytest.mark.xdist_group("server")

SINKS, WINDOW = 4, 60
FLAGS = (
    f"--kv-policy sink --sink-tokens {SINKS} --window-tokens {WINDOW} --served-model-name tiny "
    "--dtype float32 --enforce-eager --max-num-seqs 16 --max-model-len 2048 "
    "--sink-tenant-label user"
)


def _run(*arguments: str, timeout: float = 120) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "vllm_sink.cli", *arguments],
        env=environment() | {"VLLM_LOGGING_LEVEL": "ERROR"},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


@pytest.fixture(scope="module")
def server(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    log = tmp_path_factory.mktemp("commands") / "log"
    with serve(tiny("llama-gqa", tiny_folder), log, *FLAGS.split()) as running:
        yield running


def test_stream(server: Server) -> None:
    """Text on stdout; at the end the status, as arithmetic has it."""
    ended = _run("stream", server.url, "--prompt", "Call me Ishmael.", "--max-tokens", "300")
    assert ended.returncode == 0, ended.stderr
    assert len(ended.stdout) > 100
    status = ended.stderr.splitlines()[-1]
    found = re.match(
        r"(\d+) tokens \| ([\d.]+) x the native context of 128 \| ([\d.]+) tokens/s \| "
        r"(\d+) KV blocks; ended: length",
        status,
    )
    assert found, status
    tokens = int(found[1])
    assert tokens > 300
    assert float(found[2]) == pytest.approx(tokens / 128, abs=0.01)
    assert float(found[3]) > 0
    # Blocks of 32: one pinned, and those that hold any of the last 60 tokens.
    assert int(found[4]) == 1 + (tokens - 1) // 32 - (tokens - WINDOW) // 32 + 1


def test_stream_as_far_as_the_server_lets_it(server: Server) -> None:
    ended = _run("stream", server.url, "--prompt", "On and on")
    assert ended.returncode == 0, ended.stderr
    assert "2,048 tokens | 16.00 x the native context" in ended.stderr.splitlines()[-1]


def test_stream_in_a_terminal(server: Server) -> None:
    """With a terminal the status stays in the last row, and the terminal is given back."""
    ended = subprocess.run(
        [
            "script",
            "-qec",
            f"{sys.executable} -m vllm_sink.cli stream {server.url} --max-tokens 80",
            "/dev/null",
        ],
        env=environment() | {"VLLM_LOGGING_LEVEL": "ERROR"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert "x the native context of 128" in ended.stdout
    assert "\x1b[r" in ended.stdout  # all rows scroll again


def test_top(server: Server) -> None:
    server.post("/v1/completions", {"model": "tiny", "prompt": [9] * 200, "user": "me"})
    ended = _run("top", server.url, "--once", "--interval", "0.5")
    assert ended.returncode == 0, ended.stderr
    lines = ended.stdout.splitlines()
    assert "tiny engine 0  sink S=4 W=60 of 128  attention: torch" in lines[0]
    assert re.match(r"streams +0 live, 0 past the context, \d+ fit; 0 waiting", lines[1])
    blocks = [int(line.split()[-1].replace(",", "")) for line in lines[2:5]]
    assert blocks[0] == blocks[1] == 0
    assert blocks[2] > 0
    assert any(line.startswith("  me ") for line in lines)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("stream", "{url}", "--model", "other"), "--model: 'other' is not allowed; allowed: one"),
        (("stream", "{url}", "--sink-tokens", "100"), "sink_tokens: 100 is not allowed"),
        (("stream", "localhost:1"), "URL: 'localhost:1' is not allowed"),
        (("stream", "http://127.0.0.1:1"), "no server answers at http://127.0.0.1:1"),
        (("stream", "{url}", "--max-tokens", "0"), "'0' is not allowed; allowed: an integer"),
        (("top", "http://127.0.0.1:1"), "no server answers at http://127.0.0.1:1"),
        (("top", "{url}/nowhere"), "HTTP 404"),
        (("top", "{url}", "--interval", "0"), "'0' is not allowed; allowed: a positive number"),
    ],
)
def test_errors_are_one_line(server: Server, arguments: tuple[str, ...], said: str) -> None:
    ended = _run(*(a.format(url=server.url) for a in arguments))
    assert ended.returncode == 2
    assert said in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_server_without_the_policy(tiny_folder: Path, tmp_path: Path) -> None:
    flags = ["--dtype", "float32", "--enforce-eager", "--max-num-seqs", "16"]
    with serve(tiny("llama-gqa", tiny_folder), tmp_path / "log", *flags) as plain:
        for command in ("top", "stream"):
            ended = _run(command, plain.url)
            assert ended.returncode == 2
            assert "has no vllm_sink_* metrics" in ended.stderr


def _plan(folder: Path, *arguments: str) -> dict[str, object]:
    ended = _run("plan", str(folder), "--json", *arguments)
    assert ended.returncode == 0, ended.stderr
    told: dict[str, object] = json.loads(ended.stdout)
    return told


def test_plan(tiny_folder: Path) -> None:
    """2 layers, 2 KV heads, 16 wide, float32: every number by hand."""
    folder = tiny("llama-gqa", tiny_folder)
    config = json.loads((folder / "config.json").read_text())
    head = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    token = config["num_hidden_layers"] * config["num_key_value_heads"] * head * 2 * 4
    told = _plan(folder, "--kv-gib=0.001", "--dtype=float32", "--window-tokens=60", "--bandwidth=1")
    (row,) = told["windows"]  # type: ignore[misc]
    assert told["kv_bytes_per_token"] == token
    # One sink block; the window and the token that comes touch at most three blocks of 32.
    assert row["blocks_per_stream"] == 4
    assert row["kv_bytes_per_stream"] == 4 * 32 * token
    blocks = int(0.001 * 2**30) // (32 * token) - 1
    assert row["streams"] == blocks // 4
    assert row["kv_bytes_read_per_token"] == 64 * token
    weights = sum(f.stat().st_size for f in folder.glob("*.safetensors"))
    step = row["streams"] * 64 * token + weights
    assert row["bytes_read_per_step"] == step
    assert row["most_steps_per_second"] == pytest.approx(1e9 / step)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            "--kv-gib 1 --window-tokens 125",
            "--window-tokens: 125 is not allowed; allowed: 1 to 124",
        ),
        ("--kv-gib 1 --sink-tokens 128", "--sink-tokens: 128 is not allowed"),
        ("--gpu-gib 1 --overhead-gib 2", "--gpu-gib: 1.0 is not allowed; allowed: more"),
        ("--kv-gib none", "'none' is not allowed; allowed: a positive number of GiB"),
    ],
)
def test_plan_refuses(tiny_folder: Path, arguments: str, said: str) -> None:
    ended = _run("plan", str(tiny("llama-gqa", tiny_folder)), *arguments.split())
    assert ended.returncode in (1, 2)
    assert said in ended.stderr + ended.stdout
    assert "Traceback" not in ended.stderr
