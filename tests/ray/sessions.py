"""Sessions of several turns, as clients keep them: as a history of tokens."""

from __future__ import annotations

import http.client
import json
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from tests.e2e.engines import random_tokens
from tests.ray.cluster import KEY

#: Tokens that a user adds in a turn, and that the model generates.
SAID, ANSWERED = 70, 40

ENDLESS = 10**6


@dataclass
class Session:
    """One session.

    Attributes:
        number: of the session; its tokens and its id come from it.
        history: all its tokens until now.
        answers: the model's output, turn by turn.
        gaps: seconds from the last token of a replica that was lost to the next one's first.
        reasons: what ended a stream before its time.
        keep: what is sent of a history after a loss; all of it by default.
        heard: called for each token, with the number of turns before its own.
        enough: whether the client hangs up.
        lost: whether its replica was lost and no other has gone on yet.
    """

    number: int
    history: list[int] = field(default_factory=list)
    answers: list[list[int]] = field(default_factory=list)
    gaps: list[float] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)
    keep: Callable[[list[int]], list[int]] = lambda tokens: tokens
    heard: Callable[[int], None] = lambda turn: None
    enough: Callable[[], bool] = lambda: False
    lost: bool = False

    @property
    def name(self) -> str:
        return f"session-{self.number}"

    def turn(self, url: str, answered: int = ANSWERED) -> None:
        """The user adds tokens, the model answers, whatever happens to replicas."""
        seed = 1000 * self.number + len(self.answers)
        self.history += random_tokens(SAID, seed=seed)
        answer: list[int] = []
        last = 0.0
        until = time.monotonic() + 300
        while len(answer) < answered and not self.enough():
            assert time.monotonic() < until, f"{self.name}: no replica in five minutes"
            prompt = self.history + answer
            body = _body(self.keep(prompt) if self.lost else prompt, answered - len(answer))
            try:
                for token in _tokens(url, body, self.name):
                    if self.lost:
                        self.gaps.append(time.monotonic() - last)
                        self.lost = False
                    answer.append(token)
                    self.heard(len(self.answers))
                    last = time.monotonic()
                    if self.enough():
                        break
            except Ended as ended:
                self.reasons.append(str(ended))
                last = last or time.monotonic()
                self.lost = True
                time.sleep(0.2)
        self.history += answer
        self.answers.append(answer)


class Ended(Exception):
    """A stream that was cut, with the reason given."""


def _body(prompt: list[int], count: int) -> dict[str, Any]:
    return {
        "model": "tiny",
        "prompt": prompt,
        "max_tokens": count,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "return_token_ids": True,
    }


def _tokens(url: str, body: dict[str, Any], session: str) -> Any:
    """The tokens of a streamed answer.

    Raises:
        Ended: the server refuses it, ends it with an error, or is gone.
    """
    request = urllib.request.Request(
        url + "/v1/completions",
        json.dumps(body).encode(),
        {
            "Content-Type": "application/json",
            "Authorization": f"Bearer {KEY}",
            "x-session-id": session,
        },
    )
    try:
        with urllib.request.urlopen(request, timeout=240) as answer:
            for line in answer:
                text = line.decode().strip().removeprefix("data: ")
                if not text or text == "[DONE]":
                    continue
                event = json.loads(text)
                if "error" in event:
                    raise Ended(event["error"]["message"])
                yield from event["choices"][0]["token_ids"]
    except urllib.error.HTTPError as error:
        told = json.load(error)["error"]["message"]
        raise Ended(f"HTTP {error.code}: {told.partition(' (Request ID')[0]}") from None
    except (OSError, http.client.HTTPException) as error:
        raise Ended(f"cut without a reason: {error!r}") from None


def hold(url: str, sessions: list[Session], turns: int, answered: int = ANSWERED) -> None:
    """All sessions concurrently, in step: each finishes its turn before the next begins."""
    barrier = threading.Barrier(len(sessions))

    def one(session: Session) -> None:
        for _ in range(turns):
            session.turn(url, answered)
            barrier.wait(600)

    with ThreadPoolExecutor(len(sessions)) as pool:
        for done in [pool.submit(one, s) for s in sessions]:
            done.result()


@contextmanager
def endless(url: str, numbers: range) -> Iterator[list[Session]]:
    """Sessions with one endless answer each; their clients disconnect when the block ends."""
    enough = threading.Event()
    sessions = [Session(i, enough=enough.is_set) for i in numbers]
    with ThreadPoolExecutor(1) as pool:
        held = pool.submit(hold, url, sessions, 1, ENDLESS)
        try:
            yield sessions
        finally:
            enough.set()
            held.result()
