"""Servers that parse tools and thoughts, bound their queue, and have two engines."""

from __future__ import annotations

import json
import re
import shutil
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.e2e.engines import random_tokens, reference_logprobs, tiny
from tests.e2e.servers import Server, serve

pytestmark = pytest.mark.xdist_group("server")

SINKS, WINDOW, SEGMENT, QUEUE = 4, 60, 256, 6
FLAGS = (
    f"--kv-policy sink --sink-tokens {SINKS} --window-tokens {WINDOW} --segment-tokens {SEGMENT} "
    "--enforce-eager "
    "--served-model-name tiny --dtype float32 --max-num-seqs 8 --max-num-batched-tokens 64 "
    f"--max-num-queued-reqs {QUEUE} "
)
PARSERS = "--enable-auto-tool-choice --tool-call-parser hermes --reasoning-parser deepseek_r1"
#: Words that no text of the tests encodes to, and what they become.
MARKS = ("<think>", "</think>", "<tool_call>", "</tool_call>")


def with_marks(folder: Path, to: Path) -> dict[str, int]:
    """The model with a tokenizer that has what the parsers look for; their ids."""
    shutil.copytree(folder, to)
    tokenizer = json.loads((to / "tokenizer.json").read_text())
    vocab, ids = tokenizer["model"]["vocab"], {}
    for i, mark in enumerate(MARKS):
        ids[mark] = vocab[mark] = vocab.pop(f"\u0120word{i}")
        like = {**tokenizer["added_tokens"][-1], "special": False}
        tokenizer["added_tokens"].append({**like, "id": ids[mark], "content": mark})
    (to / "tokenizer.json").write_text(json.dumps(tokenizer))
    return ids


@pytest.fixture(scope="module")
def model(
    tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, int]]:
    folder = tmp_path_factory.mktemp("marks") / "model"
    return folder, with_marks(tiny("llama-gqa", tiny_folder), folder)


@pytest.fixture(scope="module")
def server(model: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    log = tmp_path_factory.mktemp("features") / "log"
    with serve(model[0], log, *FLAGS.split(), *PARSERS.split()) as running:
        yield running


def rollovers(server: Server) -> list[float]:
    """Of each engine."""
    with urllib.request.urlopen(f"{server.url}/metrics", timeout=60) as answer:
        text = answer.read().decode()
    found = re.findall(r'^vllm_sink_rollovers_total\{.*?engine="(\d)".*?\} (\S+)$', text, re.M)
    return [float(count) for _, count in sorted(found)]


def complete(server: Server, tokens: list[int]) -> dict[str, Any]:
    body = {
        "model": "tiny",
        "prompt": tokens,
        "max_tokens": 400,
        "temperature": 0,
        "ignore_eos": True,
        "return_token_ids": True,
        "logprobs": 0,
    }
    status, answer = server.post("/v1/completions", body)
    assert status == 200, answer
    return dict(answer["choices"][0])


@pytest.mark.slow
def test_two_engines(tiny_folder: Path, tmp_path: Path) -> None:
    """Streams roll on both, each equal to the reference."""
    prompts = [random_tokens(40 + 90 * i, seed=i) for i in range(4)]
    folder, flags = tiny("llama-gqa", tiny_folder), [*FLAGS.split(), "--data-parallel-size", "2"]
    with serve(folder, tmp_path / "log", *flags, "--api-server-count", "1") as server:
        with ThreadPoolExecutor(4) as clients:
            answers = list(clients.map(lambda tokens: complete(server, tokens), prompts))
        counts = rollovers(server)
    assert len(counts) == 2
    assert all(count >= 2 for count in counts)
    for tokens, answer in zip(prompts, answers, strict=True):
        every = [*tokens, *answer["token_ids"]]
        expected = reference_logprobs(folder, SINKS, WINDOW, every)[len(tokens) - 1 :]
        said = torch.tensor(answer["logprobs"]["token_logprobs"], dtype=torch.float64)
        assert (said - expected).abs().max() < 1e-4


def test_a_full_queue_is_a_503(server: Server) -> None:
    """Queued and running requests count, rolling streams included; a disconnect makes room."""
    body = {"model": "tiny", "prompt": [9] * 20, "max_tokens": 10**9, "ignore_eos": True}
    streams = [server.stream("/v1/completions", body) for _ in range(QUEUE)]
    for stream in streams:
        for _ in range(SEGMENT):
            next(stream)
    short = {**body, "max_tokens": 3}
    assert server.post("/v1/completions", short)[0] == 503
    for stream in streams:
        stream.close()
    for _ in range(100):
        status, _ = server.post("/v1/completions", short)
        if status == 200:
            break
    assert status == 200


def chat(server: Server, **more: Any) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The message of an answer in one piece, and the deltas of the same, streamed."""
    body = {
        "model": "tiny",
        "messages": [{"role": "user", "content": "Tell me of the sea."}],
        "temperature": 0.8,
        "seed": 3,
        "max_tokens": 700,
        **more,
    }
    status, answer = server.post("/v1/chat/completions", body)
    assert status == 200, answer
    events = server.stream("/v1/chat/completions", body)
    return answer["choices"][0]["message"], [c["delta"] for e in events for c in e["choices"]]


def test_a_tool_call_longer_than_a_segment(server: Server, model: Any) -> None:
    """It begins once reasoning has ended, which is soon."""
    words = {"type": "array", "items": {"enum": ["ab", "cd"]}, "minItems": 60, "maxItems": 60}
    parameters = {"type": "object", "properties": {"log": words}, "required": ["log"]}
    function = {"name": "keep", "parameters": parameters, "strict": True}
    whole, deltas = chat(
        server,
        tools=[{"type": "function", "function": function}],
        tool_choice={"type": "function", "function": {"name": "keep"}},
        logit_bias={str(model[1]["</think>"]): 100.0},
    )
    (call,) = whole["tool_calls"]
    assert call["function"]["name"] == "keep"
    arguments = call["function"]["arguments"]
    assert len(arguments) > SEGMENT  # a token a letter
    (log,) = json.loads(arguments).values()
    assert len(log) == 60
    assert set(log) == {"ab", "cd"}
    calls = [c["function"] for d in deltas for c in d.get("tool_calls") or []]
    assert "".join(c.get("name") or "" for c in calls) == "keep"
    streamed = "".join(c.get("arguments") or "" for c in calls)
    assert json.loads(streamed) == json.loads(arguments)  # a whole one is written anew


def test_thoughts_and_an_answer_over_segments(server: Server) -> None:
    """What comes before the mark is reasoning, streamed and whole alike."""
    whole, deltas = chat(server, seed=4, max_tokens=650, ignore_eos=True)
    thought = "".join(d.get("reasoning") or "" for d in deltas)
    content = "".join(d.get("content") or "" for d in deltas)
    assert thought == whole["reasoning"]
    assert content == whole["content"]
    assert len(thought) > 100
    assert len(content) > SEGMENT
