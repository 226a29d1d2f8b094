"""Clients of a real server that disconnect at any moment, cleanly or not, while streams roll."""

from __future__ import annotations

import json
import os
import re
import socket
import struct
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random
from typing import Any
from unittest import mock
from urllib.parse import urlsplit

import pytest

from tests.e2e.engines import random_tokens, tiny
from tests.e2e.servers import Server, serve

SEGMENT = 256
MODEL = "tiny"


@pytest.fixture(scope="module")
def server(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    log = tmp_path_factory.mktemp("server") / "log"
    flags = (
        f"--kv-policy sink --sink-tokens 4 --window-tokens 60 --segment-tokens {SEGMENT} "
        f"--served-model-name {MODEL} --dtype float32 --enforce-eager --max-num-seqs 10 "
        "--max-num-batched-tokens 128 --sink-max-streams 64"
    )
    # The endpoint that resets the prefix cache, and says whether it could, is for development.
    with (
        mock.patch.dict(os.environ, VLLM_SERVER_DEV_MODE="1"),
        serve(tiny("llama-gqa", tiny_folder), log, *flags.split()) as running,
    ):
        yield running


CHAT = {"messages": [{"role": "user", "content": "Count the waves."}]}


def _lasting(server: Server, i: int) -> list[int]:
    """The answer of a client that stays; ``i`` chooses its request."""
    path, body = (
        ("/v1/completions", {"prompt": random_tokens(33), "temperature": 0}),
        ("/v1/completions", {"prompt": random_tokens(700), "temperature": 0.8, "seed": 3}),
        ("/v1/chat/completions", {**CHAT, "temperature": 0, "logprobs": True}),
    )[i]
    body |= {"model": MODEL, "max_tokens": 1200, "ignore_eos": True, "return_token_ids": True}
    said: list[int] = []
    for event in server.stream(path, body):
        for choice in event["choices"]:
            said += choice.get("token_ids") or []
    return said


def _request(rng: Random) -> bytes:
    """A streamed request, as bytes on a connection."""
    length = rng.choice([10**12, rng.randint(1, 300)])
    body: dict[str, Any] = {"model": MODEL, "stream": True, "max_tokens": length, "logprobs": 1}
    if rng.random() < 0.5:
        path, body = "/v1/chat/completions", {**body, **CHAT, "logprobs": True, "n": 2}
    else:
        tokens = random_tokens(rng.randint(1, 3 * SEGMENT), seed=rng.randint(0, 9))
        path, body = "/v1/completions", {**body, "prompt": tokens, "ignore_eos": True}
    content = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content


#: A client that another process can kill: it sends its input and reads forever.
CLIENT = """
import socket, sys
connection = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
connection.sendall(sys.stdin.buffer.read())
while connection.recv(65536):
    pass
"""


def _leave(url: str, way: str, rng: Random) -> None:
    """One client that disconnects."""
    port, sent = urlsplit(url).port, _request(rng)
    assert port is not None
    if way == "killed":
        command = [sys.executable, "-S", "-c", CLIENT, str(port)]
        with subprocess.Popen(command, stdin=subprocess.PIPE) as client:
            assert client.stdin is not None
            client.stdin.write(sent)
            client.stdin.close()
            time.sleep(0.1 + rng.random())
            client.kill()
        return
    with socket.create_connection(("127.0.0.1", port), timeout=600) as client:
        if way == "in the middle of its request":
            sent = sent[: rng.randrange(len(sent))]
        client.sendall(sent)
        if way not in ("in the middle of its request", "at once"):
            end = time.monotonic() + rng.random()
            assert client.recv(65536).startswith(b"HTTP/1.1 200")
            while time.monotonic() < end and client.recv(65536):
                pass
        if way == "reset":
            # Closing sends no end, but a reset.
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


WAYS = ("closed", "reset", "at once", "in the middle of its request", "killed")


def _metrics(server: Server) -> dict[str, float]:
    """Sums over the labels."""
    with urllib.request.urlopen(server.url + "/metrics", timeout=30) as answer:
        text = answer.read().decode()
    found: dict[str, float] = {}
    for name, kind, value in re.findall(
        r'^([\w:]+)\{(?:[^}]*kind="(\w+)")?[^}]*\} (\S+)$', text, re.MULTILINE
    ):
        key = f"{name} {kind}" if kind else name
        found[key] = found.get(key, 0) + float(value)
    return found


def _nothing_is_held(server: Server) -> bool:
    """vLLM resets its prefix cache only if no block of it is in use."""
    for _ in range(100):
        _, answer = server.post("/reset_prefix_cache", {})
        if answer["success"]:
            return True
        time.sleep(0.1)
    return False


def test_clients_leave_in_every_way(server: Server) -> None:
    """No block leaks, and the others get the answers that they get alone."""
    alone = [_lasting(server, i) for i in range(3)]
    assert [len(said) for said in alone] == [1200, 1200, 1200]
    assert _nothing_is_held(server)
    before = _metrics(server)
    over, count, failed = threading.Event(), dict.fromkeys(WAYS, 0), list[BaseException]()

    def churn(seed: int) -> None:
        rng = Random(seed)
        while not over.is_set():
            way = rng.choice(WAYS)
            try:
                _leave(server.url, way, rng)
            except BaseException as error:
                failed.append(error)
                return
            count[way] += 1

    def stay(i: int) -> list[list[int]]:
        """Repeated until enough clients have left, however fast the machine is."""
        told = []
        while not told or (min(count.values()) < 5 and not failed):
            told.append(_lasting(server, i))
        return told

    clients = [threading.Thread(target=churn, args=(i,)) for i in range(5)]
    for client in clients:
        client.start()
    try:
        with ThreadPoolExecutor(3) as pool:
            beside = list(pool.map(stay, range(3)))
    finally:
        over.set()
    for client in clients:
        client.join()
    assert not failed
    for told, once in zip(beside, alone, strict=True):
        assert all(said == once for said in told)
    assert min(count.values()) >= 5, count
    assert _nothing_is_held(server)
    server.post("/v1/completions", {"model": MODEL, "prompt": [9, 10], "max_tokens": 1})
    after = _metrics(server)
    assert after["vllm:kv_cache_usage_perc"] == 0
    assert after["vllm:num_requests_running"] == after["vllm:num_requests_waiting"] == 0
    assert after["vllm_sink_streams"] == after["vllm_sink_reserved_blocks"] == 0
    assert after["vllm_sink_blocks sink"] == after["vllm_sink_blocks window"] == 0
    assert after["vllm_sink_blocks free"] == before["vllm_sink_blocks free"]
    rolled = "vllm_sink_rollovers_total"
    # Those who stay roll 3 x 1,200 tokens through segments of 256; those who leave roll too.
    assert after[rolled] - before[rolled] > 20
    assert "Traceback" not in server.log.read_text()
