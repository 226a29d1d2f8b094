"""A server under streams: this process is the client, the server is its child.

``PEER_SERVER`` says which: ``vllm-sink`` (``vllm serve --kv-policy sink``, in this environment) or
``llama.cpp`` (its server, in an environment of its own). Only the server's CPU time counts.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse
from contextlib import suppress
from pathlib import Path
from typing import Any

from benchmarks.peers import env
from benchmarks.peers.drivers.protocol import Peer, Settings, serve
from benchmarks.processes import family

#: Seconds until a server has to be up.
PATIENCE = 600
#: Seconds in which it has to notice that its clients left.
SETTLED = 20


class Stream(threading.Thread):
    """One client that counts the tokens it receives."""

    def __init__(self, address: str, path: str, body: dict[str, Any]) -> None:
        super().__init__(daemon=True)
        where = urllib.parse.urlsplit(address)
        assert where.hostname is not None
        self.connection = http.client.HTTPConnection(where.hostname, where.port, timeout=600)
        self.path, self.body = path, body
        self.tokens = 0
        self.error: str | None = None

    def run(self) -> None:
        try:
            told = {"Content-Type": "application/json"}
            self.connection.request("POST", self.path, json.dumps(self.body), told)
            answer = self.connection.getresponse()
            if answer.status != 200:
                self.error = f"HTTP {answer.status}: {answer.read(500).decode()}"
                return
            for line in answer:
                if line.startswith(b"data: ") and line != b"data: [DONE]\n":
                    self.tokens += self._count(json.loads(line[6:]))
            self.error = self.error or f"ended by itself after {self.tokens} tokens"
        except (OSError, ValueError, AttributeError, http.client.HTTPException) as error:
            self.error = self.error or repr(error)

    def _count(self, event: dict[str, Any]) -> int:
        if "error" in event:
            self.error = str(event["error"])
            return 0
        if "choices" in event:  # OpenAI's form, as vLLM serves it with return_token_ids
            return sum(len(choice.get("token_ids") or ()) for choice in event["choices"])
        return len(event.get("tokens") or ())

    def leave(self) -> None:
        """A client that hangs up."""
        if self.connection.sock is not None:
            with suppress(OSError):
                self.connection.sock.shutdown(socket.SHUT_RDWR)
        self.join(30)


class HttpPeer(Peer):
    notes = ("over HTTP, with the text of every token; the client's CPU time is not counted",)

    def load(self, settings: Settings) -> None:
        self.settings = settings
        self.kind = os.environ["PEER_SERVER"]
        self.streams: list[Stream] = []
        command = self._llamacpp() if self.kind == "llama.cpp" else self._vllm()
        # Open during the whole run: holds the error of a server that fails.
        self.out = tempfile.NamedTemporaryFile("w+", suffix=".log")  # noqa: SIM115
        self.server = subprocess.Popen(command, stdout=self.out, stderr=subprocess.STDOUT)
        self._await()

    def _vllm(self) -> list[str]:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.address = f"http://127.0.0.1:{port}"
        settings = self.settings
        flags = (
            f"--host 127.0.0.1 --port {port} --served-model-name model --dtype {settings.dtype} "
            f"--kv-policy sink --sink-tokens {settings.sink_tokens} "
            f"--window-tokens {settings.window_tokens} "
            f"--max-num-seqs {settings.streams} --max-num-batched-tokens 512 "
            f"--kv-cache-memory-bytes {384 << 20} --disable-uvicorn-access-log"
        )
        vllm = [sys.executable, "-m", "vllm.entrypoints.cli.main", "serve", settings.model]
        return [*vllm, *flags.split()]

    def _llamacpp(self) -> list[str]:
        self.address = ""
        settings = self.settings
        return [
            str(env.python("llamacpp")),
            "-m",
            "benchmarks.peers.drivers.llamacpp_serve",
            settings.gguf,
            str(settings.sink_tokens),
            str(settings.cache_tokens),
            str(settings.streams),
        ]

    def _await(self) -> None:
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end and self.server.poll() is None:
            said = Path(self.out.name).read_text()
            if not self.address and (found := re.search(r"listening on (http\S+)", said)):
                self.address = found[1]
            if self.address and self._is_healthy():
                return
            time.sleep(0.3)
        raise RuntimeError(f"the server did not come up: {Path(self.out.name).read_text()[-2000:]}")

    def _is_healthy(self) -> bool:
        where = urllib.parse.urlsplit(self.address)
        assert where.hostname is not None
        connection = http.client.HTTPConnection(where.hostname, where.port, timeout=5)
        try:
            connection.request("GET", "/health")
            return connection.getresponse().status == 200
        except OSError:
            return False
        finally:
            connection.close()

    def _request(self, prompt: list[int]) -> tuple[str, dict[str, Any]]:
        if self.kind != "llama.cpp":
            return "/v1/completions", {
                "model": "model",
                "prompt": prompt,
                "max_tokens": 1 << 40,
                "temperature": 0,
                "ignore_eos": True,
                "stream": True,
                "return_token_ids": True,
            }
        # A prompt may not fill a slot: the stream passes the cache size by generating.
        return "/completion", {
            "prompt": prompt[: self.settings.cache_tokens - 16],
            "n_predict": -1,
            "n_keep": self.settings.sink_tokens,
            "temperature": 0,
            "top_k": 1,
            "samplers": ["top_k"],
            "ignore_eos": True,
            "cache_prompt": False,
            "stream": True,
            "return_tokens": True,
        }

    def begin(self, prompts: list[list[int]]) -> None:
        """Returns once every stream is past the cache size."""
        self._leave()
        self.streams = [Stream(self.address, *self._request(prompt)) for prompt in prompts]
        for stream in self.streams:
            stream.start()
        while not all(stream.tokens > 20 for stream in self.streams):
            self._check()
            time.sleep(0.02)

    def _check(self) -> None:
        if errors := [stream.error for stream in self.streams if stream.error]:
            raise RuntimeError(errors[0])

    def decode(self, tokens: int, seconds: float) -> dict[str, Any]:
        """What arrives in between; the server does not wait for the clock."""
        before, cpu, begin = self._tokens(), self.cpu_seconds(), time.perf_counter()
        most = before + tokens * len(self.streams)
        while time.perf_counter() - begin < seconds and self._tokens() < most:
            time.sleep(0.01)
        elapsed = time.perf_counter() - begin
        produced = self._tokens() - before
        used = self.cpu_seconds() - cpu
        self._check()
        self._leave()
        self._settle()
        return {"tokens": produced, "seconds": elapsed, "cpu_seconds": used}

    def _settle(self) -> None:
        """Wait until it is idle: stopped within a step, it would wake up past its own deadlines."""
        end = time.monotonic() + SETTLED
        before = self.cpu_seconds()
        while time.monotonic() < end:
            time.sleep(0.5)
            now = self.cpu_seconds()
            if now - before < 0.05:
                return
            before = now

    def _tokens(self) -> int:
        return sum(stream.tokens for stream in self.streams)

    def _leave(self) -> None:
        for stream in self.streams:
            stream.leave()
        self.streams = []

    def processes(self) -> list[int]:
        return list(family(self.server.pid))

    def close(self) -> None:
        self._leave()
        if getattr(self, "server", None) is not None:
            self.server.terminate()
            try:
                self.server.wait(20)
            except subprocess.TimeoutExpired:
                self.server.kill()


class VllmSinkServer(HttpPeer):
    packages = ("vllm", "vllm-sink", "torch")


class LlamaCppServer(HttpPeer):
    packages = ()
    notes = (
        *HttpPeer.notes,
        "the prompt is cut to the slot's size less 16 tokens: a longer one is refused",
        "another policy than token by token: a full slot loses half of what is not kept at once",
    )


if __name__ == "__main__":
    serve(LlamaCppServer() if os.environ.get("PEER_SERVER") == "llama.cpp" else VllmSinkServer())
