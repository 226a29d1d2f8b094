"""``vllm-sink plan`` and ``doctor`` as a user runs them: they need no server."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.command_line import run_with_vllm
from tests.e2e.engines import tiny
from vllm_sink import cli

pytestmark = pytest.mark.xdist_group("server")


def _plan(folder: Path, *arguments: str) -> dict[str, object]:
    ended = run_with_vllm("plan", str(folder), "--json", *arguments)
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
    assert row["streams"] == int(0.8 * blocks) // 4  # --sink-stream-share
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
    ended = run_with_vllm("plan", str(tiny("llama-gqa", tiny_folder)), *arguments.split())
    assert ended.returncode in (1, 2)
    assert said in ended.stderr + ended.stdout
    assert "Traceback" not in ended.stderr


def test_doctor_takes_every_flag_of_a_server(tiny_folder: Path) -> None:
    """Options before the model, the front end's among them; a refusal has a server's words."""
    folder = str(tiny("llama-gqa", tiny_folder))
    flags = "--json --dtype float32 --window-tokens 60 --port 8001 --max-model-len 700 --kv_gib 1"
    ended = run_with_vllm("doctor", *flags.split(), "-cc.cudagraph_mode=NONE", "-tp", "1", folder)
    assert ended.returncode == 0, ended.stderr
    verdict = json.loads(ended.stdout)
    assert verdict["supported"]
    assert (verdict["window_tokens"], verdict["max_stream_tokens"]) == (60, 700)
    assert verdict["kv_pool_bytes"] == 2**30
    ended = run_with_vllm("doctor", folder, "--grpc")
    assert ended.returncode == 1
    assert ended.stdout == (
        f"{folder}: refused\n  --grpc with --kv-policy: its server has no limits of tenants, "
        "no drain and no API key; allowed: without it\n"
    )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("--sink-tokens -1", "'-1' is not allowed; allowed: an integer of at least 0"),
        ("--kv-policy full", "--kv-policy: 'full' is not allowed; allowed: sink or window"),
        ("--kv-gib none", "'none' is not allowed; allowed: a positive number of GiB"),
        ("--no-such-flag", "unrecognized arguments: --no-such-flag"),
    ],
)
def test_doctors_errors(
    tiny_folder: Path, arguments: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """In this process: vLLM is there already."""
    folder = str(tiny("llama-gqa", tiny_folder))
    try:
        status = cli.main(["doctor", folder, *arguments.split()])
    except SystemExit as ended:  # argparse's own
        status = int(ended.code or 0)
    told = capsys.readouterr()
    assert status == 2
    assert said in told.err
    assert told.out == ""


def test_doctor_of_no_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor"]) == 2
    assert "MODEL: 'nothing' is not allowed" in capsys.readouterr().err


def test_help_imports_nothing_slow() -> None:
    for arguments in (["--help"], ["doctor", "--help"], ["doctor", "model", "-h"]):
        code = (
            "import atexit, sys; from vllm_sink import cli; "
            "slow = {'vllm', 'torch', 'openai', 'httpx', 'rich'}; "
            "atexit.register(lambda: print(slow & set(sys.modules))); "
            f"cli.main({arguments})"
        )
        ended = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
        )
        assert "doctor" in ended.stdout
        assert ended.stdout.splitlines()[-1] == "set()"
