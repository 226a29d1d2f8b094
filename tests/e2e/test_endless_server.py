"""Over HTTP: no answer ends at a segment, and what a client sees covers the whole stream."""

from __future__ import annotations

import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.e2e.engines import random_tokens, tiny
from tests.e2e.servers import Server, run_vllm, serve
from tests.reference import SinkReference

# One worker: the tests share what the module sets up.

SINKS, WINDOW, SEGMENT = 4, 60, 256
MODEL = "tiny"


@pytest.fixture(scope="module")
def server(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    log = tmp_path_factory.mktemp("server") / "log"
    flags = (
        f"--kv-policy sink --sink-tokens {SINKS} --window-tokens {WINDOW} "
        f"--segment-tokens {SEGMENT} --served-model-name {MODEL} --dtype float32 "
        "--enforce-eager --max-num-seqs 8 --max-num-batched-tokens 128"
    )
    with serve(tiny("llama-gqa", tiny_folder), log, *flags.split()) as running:
        yield running


def _body(tokens: list[int], **more: Any) -> dict[str, Any]:
    return {
        "model": MODEL,
        "prompt": tokens,
        "temperature": 0,
        "ignore_eos": True,
        "return_token_ids": True,
        **more,
    }


def _assert_greedy(folder: Path, tokens: list[int], said: list[int]) -> None:
    """Each token is the reference's best; where two tie to a rounding, either is right."""
    scores = SinkReference(folder, SINKS, WINDOW).score(tokens + said)[len(tokens) - 1 : -1]
    taken = scores.gather(1, torch.tensor(said)[:, None])[:, 0]
    assert (scores.max(-1).values - taken).max() < 1e-4


def _running(server: Server) -> float:
    with urllib.request.urlopen(server.url + "/metrics", timeout=30) as answer:
        lines = answer.read().decode().splitlines()
    return sum(
        float(line.rpartition(" ")[2])
        for line in lines
        if line.startswith("vllm:num_requests_running")
    )


@pytest.mark.parametrize("length", [20, 2000])
def test_an_answer_over_many_segments(server: Server, tiny_folder: Path, length: int) -> None:
    tokens = random_tokens(length)
    status, answer = server.post("/v1/completions", _body(tokens, max_tokens=1500))
    assert status == 200, answer
    said = answer["choices"][0]["token_ids"]
    assert answer["choices"][0]["finish_reason"] == "length"
    usage = answer["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"]) == (length, 1500)
    assert usage["total_tokens"] == length + 1500
    _assert_greedy(tiny("llama-gqa", tiny_folder), tokens, said)


def test_streamed_usage_is_of_the_whole(server: Server) -> None:
    tokens = random_tokens(300)
    more = {"max_tokens": 700, "n": 2, "temperature": 1.0, "seed": 1}
    told = [0, 0]
    for event in server.stream(
        "/v1/completions", _body(tokens, stream_options={"include_usage": True}, **more)
    ):
        for choice in event["choices"]:
            told[choice["index"]] += len(choice.get("token_ids") or [])
        usage = event.get("usage") or {}
    assert told == [700, 700]
    assert (usage["prompt_tokens"], usage["completion_tokens"]) == (300, 1400)


def test_an_endless_chat_runs_until_the_client_leaves(server: Server) -> None:
    body = _body([], messages=[{"role": "user", "content": "Count the waves."}])
    body["vllm_xargs"] = {"endless": True}
    del body["prompt"]
    stream, count = server.stream("/v1/chat/completions", body), 0
    for event in stream:
        count += sum(len(c.get("token_ids") or []) for c in event["choices"])
        assert all(c["finish_reason"] is None for c in event["choices"])
        if count >= 6 * SEGMENT:
            break
    stream.close()
    for _ in range(100):
        if _running(server) == 0:
            break
        time.sleep(0.1)
    assert _running(server) == 0


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
@pytest.mark.parametrize("huge", [1 << 30, 1 << 40, 2**53 - 1])
def test_a_huge_max_tokens_means_until_stopped(server: Server, path: str, huge: int) -> None:
    """Like an unset one: a client that means "forever" is not refused."""
    body = _body([7, 8, 9], max_tokens=huge)
    if "chat" in path:
        body["messages"] = [{"role": "user", "content": "Count the waves."}]
        del body["prompt"]
    stream = server.stream(path, body)
    for _ in range(5):
        assert all(c["finish_reason"] is None for c in next(stream)["choices"])
    stream.close()


def test_structured_output_goes_on(server: Server) -> None:
    """A grammar's state is the scheduler's, not the segment's."""
    body = _body([], max_tokens=900, structured_outputs={"regex": "(ab[0-9]){300}c"}, logprobs=0)
    body["prompt"] = "Count the waves."
    status, answer = server.post("/v1/completions", body)
    assert status == 200, answer
    text = answer["choices"][0]["text"]
    assert len(text) == 900
    assert {text[i : i + 2] for i in range(0, 900, 3)} == {"ab"}
    assert all(c.isdigit() for c in text[2::3])
    assert len(answer["choices"][0]["logprobs"]["token_logprobs"]) == 900


def test_a_short_request_ends_where_it_did(server: Server) -> None:
    status, answer = server.post("/v1/completions", _body(random_tokens(10), max_tokens=7))
    assert status == 200
    assert answer["usage"]["completion_tokens"] == 7


def test_log_states_the_segment(server: Server) -> None:
    log = server.log.read_text()
    assert f"streams may run until they are stopped, in segments of {SEGMENT} tokens" in log


def test_a_bad_segment_is_one_line(tiny_folder: Path) -> None:
    folder = tiny("llama-gqa", tiny_folder)
    flags = "--kv-policy sink --window-tokens 60 --segment-tokens 100"
    ended = run_vllm("serve", str(folder), *flags.split())
    assert ended.returncode != 0
    told = ended.stderr + ended.stdout
    assert "--segment-tokens: 100 is not allowed; allowed: 192 or more" in told
    assert "Traceback" not in told
