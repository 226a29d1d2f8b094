"""What must not notice the fuzzer: a stream that rolls beside it, and a probe of ``/health``."""

from __future__ import annotations

import json
import threading
import time
from typing import Any

import httpx


class Bystander(threading.Thread):
    """Runs one stream again and again; each answer must be the first one's, token by token.

    Args:
        url: the server's.
        model: as the server calls it.
        tokens: of the answer; more than a segment, so that it rolls.
        prompt: its tokens.
    """

    def __init__(self, url: str, model: str, tokens: int, prompt: list[int]) -> None:
        super().__init__(daemon=True)
        self._url = url
        self._body = {
            "model": model,
            "prompt": prompt,
            "max_tokens": tokens,
            "temperature": 0,
            "ignore_eos": True,
            "return_token_ids": True,
            "stream": True,
        }
        self._over = threading.Event()
        self.alone: list[int] = []
        self.answers = 0
        self.tokens = 0
        self.wrong: list[str] = []

    def listen_alone(self) -> None:
        """The answer without other requests."""
        self.alone = self._answer()
        assert len(self.alone) == self._body["max_tokens"], len(self.alone)

    def run(self) -> None:
        while not self._over.is_set():
            try:
                said = self._answer()
            except Exception as error:
                if not self._over.is_set():
                    self.wrong.append(f"answer {self.answers}: {error!r}")
                    return
                break
            if not self._over.is_set() and len(said) != len(self.alone):
                self.wrong.append(f"answer {self.answers}: {len(said)} tokens")
            self.tokens += len(said)
            at = next(
                (i for i, (a, b) in enumerate(zip(said, self.alone, strict=False)) if a != b), -1
            )
            if at >= 0:
                self.wrong.append(f"answer {self.answers}: token {at} differs")
            self.answers += 1

    def _answer(self) -> list[int]:
        said: list[int] = []
        with httpx.stream(
            "POST", self._url + "/v1/completions", json=self._body, timeout=600
        ) as answer:
            assert answer.status_code == 200, answer.read()
            for line in answer.iter_lines():
                if self._over.is_set():
                    return said
                if line.startswith("data: {"):
                    event = json.loads(line.removeprefix("data: "))
                    assert "error" not in event, event
                    for choice in event["choices"]:
                        said += choice.get("token_ids") or []
        return said

    def stop(self) -> None:
        """Stop; all output so far has been compared."""
        self._over.set()
        self.join(60)


class Probe(threading.Thread):
    """Requests ``/health`` twice per second."""

    def __init__(self, url: str) -> None:
        super().__init__(daemon=True)
        self._url = url
        self._over = threading.Event()
        self.asked = 0
        self.slowest = 0.0
        self.sick: list[str] = []

    def run(self) -> None:
        while not self._over.wait(0.5):
            began = time.monotonic()
            try:
                answer: Any = httpx.get(self._url + "/health", timeout=60).status_code
            except httpx.HTTPError as error:
                answer = repr(error)
            self.asked += 1
            self.slowest = max(self.slowest, time.monotonic() - began)
            if answer != 200:
                self.sick.append(str(answer))

    def stop(self) -> None:
        self._over.set()
        self.join(60)
