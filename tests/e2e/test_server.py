"""The flag on the real ``vllm`` command, and what a client sees over HTTP."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.engines import random_tokens, tiny
from tests.e2e.servers import Server, run_vllm, serve
from tests.reference import SinkReference

# One worker: the tests share what the module sets up.
pytestmark = pytest.mark.xdist_group("server")

SINKS, WINDOW = 4, 60
MODEL = "tiny"


@pytest.fixture(scope="module")
def server(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    log = tmp_path_factory.mktemp("server") / "log"
    flags = f"--kv-policy sink --sink-tokens {SINKS} --window-tokens {WINDOW}"
    with serve(
        tiny("llama-gqa", tiny_folder),
        log,
        *flags.split(),
        *f"--served-model-name {MODEL} --dtype float32 --enforce-eager --max-num-seqs 16".split(),
    ) as running:
        yield running


def _complete(server: Server, tokens: list[int], count: int, **more: Any) -> list[int]:
    body = {
        "model": MODEL,
        "prompt": tokens,
        "max_tokens": count,
        "temperature": 0,
        "ignore_eos": True,
        "return_token_ids": True,
        **more,
    }
    status, answer = server.post("/v1/completions", body)
    assert status == 200, answer
    assert answer["usage"]["completion_tokens"] == count
    return list(answer["choices"][0]["token_ids"])


def test_runs_past_the_context(server: Server, tiny_folder: Path) -> None:
    """150 prompt and 300 generated tokens on a model of 128 positions, as the reference has it."""
    tokens = random_tokens(150)
    said = _complete(server, tokens, 300)
    folder = tiny("llama-gqa", tiny_folder)
    scores = SinkReference(folder, SINKS, WINDOW).score(tokens + said)[149:-1].double()
    best = scores.max(-1).values
    taken = scores.gather(1, torch_ids(said))[:, 0]
    # Greedy all along; where two tokens tie to a rounding, either is right.
    assert (best - taken).max() < 1e-4


def torch_ids(ids: list[int]) -> Any:
    import torch

    return torch.tensor(ids)[:, None]


def test_log_states_the_policy(server: Server) -> None:
    log = server.log.read_text()
    assert "KV policy sink for Llama, RoPE (default): 4 sink tokens and a window of 60" in log
    assert "streams fit in" in log
    assert "VLLM_ALLOW_LONG_MAX_MODEL_LEN" not in log


def test_a_request_pins_its_own(server: Server) -> None:
    tokens = random_tokens(200, seed=5)
    default = _complete(server, tokens, 40)
    same = _complete(server, tokens, 40, vllm_xargs={"sink_tokens": SINKS})
    more = _complete(server, tokens, 40, vllm_xargs={"sink_tokens": 50})
    assert same == default
    assert more != default


@pytest.mark.parametrize(
    ("value", "allowed"),
    [
        (-1, "an integer of at least 0"),
        ("sistem", "an integer of at least 0, or 'system' in a chat"),
        (2.5, "an integer of at least 0"),
        ("system", "in a chat that begins with a system message"),
        (21, "0 to 20, the length of the prompt"),
    ],
)
def test_bad_sink_tokens(server: Server, value: object, allowed: str) -> None:
    body = {"model": MODEL, "prompt": random_tokens(20), "vllm_xargs": {"sink_tokens": value}}
    status, answer = server.post("/v1/completions", body)
    assert status == 400
    message = answer["error"]["message"]
    assert "sink_tokens" in message
    assert repr(value) in message
    assert allowed in message
    assert "\n" not in message


def test_a_misspelt_name_is_told(server: Server) -> None:
    body = {"model": MODEL, "prompt": random_tokens(20), "vllm_xargs": {"sink_token": 4}}
    status, answer = server.post("/v1/completions", body)
    assert status == 400
    assert "'sink_token' is not allowed; allowed: 'sink_tokens'" in answer["error"]["message"]


def test_pinning_past_the_context(server: Server) -> None:
    body = {"model": MODEL, "prompt": random_tokens(100), "vllm_xargs": {"sink_tokens": 90}}
    status, answer = server.post("/v1/completions", body)
    assert status == 400
    assert "0 to 68" in answer["error"]["message"]


def test_bad_requests_leave_others_alone(server: Server) -> None:
    """A running stream's output is the same whether or not others are refused beside it."""
    tokens = random_tokens(90, seed=8)
    quiet = _complete(server, tokens, 200)
    body = {
        "model": MODEL,
        "prompt": tokens,
        "max_tokens": 200,
        "temperature": 0,
        "ignore_eos": True,
        "return_token_ids": True,
    }
    said: list[int] = []
    for i, event in enumerate(server.stream("/v1/completions", body)):
        for choice in event["choices"]:
            said += choice.get("token_ids") or []
        if i % 40 == 5:
            bad = {"model": MODEL, "prompt": tokens, "vllm_xargs": {"sink_tokens": -i}}
            assert server.post("/v1/completions", bad)[0] == 400
    assert said == quiet


def _chat(server: Server, messages: list[dict[str, str]], **more: Any) -> tuple[int, Any]:
    body = {
        "model": MODEL,
        "messages": messages,
        "max_tokens": 30,
        "temperature": 0,
        "ignore_eos": True,
        "return_token_ids": True,
        **more,
    }
    return server.post("/v1/chat/completions", body)


def test_system_pins_the_system_message(server: Server) -> None:
    """``"system"`` gives what the rendered system message's length gives, and no other number."""
    system = "Answer in verse, always, and in five lines."
    messages = [
        {"role": "system", "content": system},
        {"role": "user", "content": "Tell me of the sea and of all the ships that sail there."},
    ]
    # The template: a BOS, then a role token, the text (a token a letter), an end token.
    length = 1 + 1 + len(system) + 1
    answers = {}
    for value in ("system", length, length - 1):
        status, answer = _chat(server, messages, vllm_xargs={"sink_tokens": value})
        assert status == 200, answer
        answers[value] = answer["choices"][0]["token_ids"]
    assert answers["system"] == answers[length]
    assert answers["system"] != answers[length - 1]


def test_system_without_a_system_message(server: Server) -> None:
    status, answer = _chat(
        server, [{"role": "user", "content": "Hello"}], vllm_xargs={"sink_tokens": "system"}
    )
    assert status == 400
    assert "leading system message" in answer["error"]["message"]


def test_help_has_a_group(tiny_folder: Path) -> None:
    told = run_vllm("serve", "--help=KVPolicy").stdout
    for flag in ("--kv-policy {full,window,sink}", "--sink-tokens S", "--window-tokens W"):
        assert flag in told
    assert "default: None" not in told


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--kv-policy typo", "--kv-policy: 'typo' is not allowed; allowed: one of full, window"),
        ("--kv-policy sink --window-tokens 126", "--window-tokens: 126 is not allowed; allowed: 1"),
        ("--window-tokens 60", "--window-tokens needs --kv-policy"),
    ],
)
def test_bad_flags_are_one_line(tiny_folder: Path, flags: str, said: str) -> None:
    folder = tiny("llama-gqa", tiny_folder)
    ended = run_vllm("serve", str(folder), *flags.split())
    assert ended.returncode != 0
    told = ended.stderr + ended.stdout
    assert said in told
    assert "Traceback" not in told
