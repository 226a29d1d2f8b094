"""A running server, over HTTP: its models, its metrics, and a stream of its own.

``openai`` and ``httpx``, both of vLLM's own requirements, are imported where they are used: they
take a second, and the other commands do without.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from prometheus_client.parser import text_string_to_metric_families

from vllm_sink.errors import PolicyError

if TYPE_CHECKING:
    from openai import APIStatusError, Stream
    from openai.types import Completion

#: Seconds to wait for a connection. For an answer there is no limit: a full server is only slow.
CONNECT_TIMEOUT = 30.0

#: Where a key is looked for, in this order: vLLM's variable, then the OpenAI client's.
KEY_VARIABLES = ("VLLM_API_KEY", "OPENAI_API_KEY")


class ServerError(Exception):
    """A server that does not answer, or not what was asked for; the text says which."""


class BrokenStream(ServerError):
    """A stream that began, and ended with an error or with the connection."""


def add(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that name a server."""
    parser.add_argument("url", metavar="URL", help="the server, such as http://localhost:8000")
    parser.add_argument(
        "--api-key",
        metavar="KEY",
        help=f"the server's key (default: {', then '.join(KEY_VARIABLES)}, of the environment, "
        "where other users of this machine cannot see it)",
    )


def base_url(text: str) -> str:
    """The server's address without ``/v1`` or a slash at its end.

    Raises:
        PolicyError: it is no HTTP address.
    """
    parts = urlsplit(text)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise PolicyError("URL", text, "an address such as http://localhost:8000")
    return text.rstrip("/").removesuffix("/metrics").removesuffix("/v1").rstrip("/")


@dataclass(frozen=True)
class Key:
    """An API key; nothing prints its value.

    Attributes:
        value: the key.
        source: the flag or the variable that it is from.
    """

    value: str = field(repr=False)
    source: str

    @classmethod
    def find(cls, given: str | None) -> Key | None:
        """The key that was given, or the environment's; None where there is none.

        Raises:
            PolicyError: no HTTP header can carry it.
        """
        sources = {"--api-key": given} | {name: os.environ.get(name) for name in KEY_VARIABLES}
        for source, value in sources.items():
            # A secret that was read from a file often ends with a newline.
            if value := (value or "").strip():
                if not (value.isascii() and value.isprintable()):
                    raise PolicyError(source, "a key that no header can carry", "printable ASCII")
                return cls(value, source)
        return None


class Server:
    """A server of vLLM's.

    Args:
        url: its address.
        key: its API key, if it has one.
    """

    def __init__(self, url: str, key: Key | None = None) -> None:
        import openai

        self.url = base_url(url)
        self.key = key
        self.client = openai.OpenAI(
            base_url=f"{self.url}/v1",
            api_key=key.value if key else "EMPTY",  # as vLLM's own client: it must have one
            timeout=openai.Timeout(None, connect=CONNECT_TIMEOUT),
            max_retries=0,  # the user is told instead
        )

    @classmethod
    def of(cls, args: argparse.Namespace) -> Server:
        """The server that :func:`add`'s arguments name."""
        return cls(args.url, Key.find(args.api_key))

    def get(self, path: str) -> str:
        """The text of a GET's answer.

        Raises:
            ServerError: there is none, or it is an error.
        """
        with self.errors(path):
            return self.client.get(self.url + path, cast_to=str)

    def model(self, wanted: str | None) -> dict[str, Any]:
        """The card of the model to ask: ``wanted``, or the only one.

        Raises:
            ServerError: it is not there, or there is a choice.
        """
        answer = self.get("/v1/models")
        try:
            cards: dict[str, dict[str, Any]] = {c["id"]: c for c in json.loads(answer)["data"]}
        except (ValueError, KeyError, TypeError):
            raise ServerError(f"{self.url}/v1/models has no list of models") from None
        if wanted is None and len(cards) == 1:
            return next(iter(cards.values()))
        if wanted not in cards:
            raise ServerError(f"--model: {wanted!r} is not allowed; allowed: one of {list(cards)}")
        return cards[wanted]

    def metrics(self) -> Metrics:
        """What ``/metrics`` says now.

        Raises:
            ServerError: it has nothing of this project's.
        """
        answer = self.get("/metrics")
        try:
            found = Metrics(answer)
        except ValueError:
            raise ServerError(f"{self.url}/metrics is not in Prometheus's format") from None
        if not found.has("vllm_sink_info"):
            raise ServerError(
                f"{self.url}/metrics has no vllm_sink_* metrics: the server runs without "
                "--kv-policy sink, or with --disable-log-stats"
            )
        return found

    def events(self, stream: Stream[Completion]) -> Iterator[Completion]:
        """The events of a stream that the server has begun.

        Raises:
            BrokenStream: one is an error, or the connection is lost.
        """
        import httpx
        import openai

        try:
            with stream:
                yield from stream
        # Before its version 3, openai lets errors of httpx out of a stream.
        except (openai.APIConnectionError, httpx.HTTPError) as error:
            raise BrokenStream(f"{self.url} went away: {_cause(error)}") from None
        except openai.APIError as error:
            raise BrokenStream(f"{self.url} ended the stream: {error.message}") from None
        except ValueError as error:
            raise BrokenStream(f"{self.url} sent an event that is no JSON: {error}") from None

    @contextmanager
    def errors(self, path: str) -> Iterator[None]:
        """A request to ``path``, whose errors are ours.

        Raises:
            ServerError: nobody answers, or the answer is an error; with the server's own words.
        """
        import openai

        try:
            yield
        except openai.APIStatusError as error:
            told = f"{self.url}{path}: HTTP {error.status_code}: {self._refusal(error)}"
            raise ServerError(told) from None
        except openai.APIConnectionError as error:
            cause = _cause(error)
            # ConnectError and ConnectTimeout, of httpx or of httpx2, by openai's version.
            if type(cause).__name__.startswith("Connect"):
                raise ServerError(f"no server answers at {self.url}: {cause}") from None
            raise ServerError(f"{self.url}{path}: the connection was lost: {cause}") from None

    def _refusal(self, error: APIStatusError) -> str:
        """What the server says, what to do about it, and when it says to come back."""
        if error.status_code == 401:
            # Not in the server's words: some repeat the key.
            where = "set the server's key in VLLM_API_KEY or --api-key"
            if self.key is None:
                return f"it asks for an API key; {where}"
            return f"it refuses the key of {self.key.source}; {where}"
        body = error.body
        message = body.get("message") if isinstance(body, dict) else None
        told = str(message or error.response.text.strip()[:200])
        after = error.response.headers.get("retry-after")
        if after is None:
            return told
        return f"{told} (Retry-After: {after}{' s' if after.isdecimal() else ''})"


def _cause(error: BaseException) -> BaseException:
    """What the HTTP library says, below the client's own "Connection error."."""
    return error.__cause__ or error


class Metrics:
    """Samples by name; Ray's names are read as vLLM's: ``ray_vllm_x`` and ``vllm:x`` as ``vllm_x``.

    Args:
        text: in Prometheus's format.
    """

    def __init__(self, text: str) -> None:
        self._samples: dict[str, list[tuple[dict[str, str], float]]] = {}
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                name = sample.name.removeprefix("ray_").replace("vllm:", "vllm_", 1)
                self._samples.setdefault(name, []).append((sample.labels, sample.value))

    def has(self, name: str) -> bool:
        return name in self._samples

    def of(self, name: str, **labels: str) -> Iterator[tuple[dict[str, str], float]]:
        """Samples whose labels include these."""
        for have, value in self._samples.get(name, ()):
            if labels.items() <= have.items():
                yield have, value

    def sum(self, name: str, **labels: str) -> float:
        return sum(value for _, value in self.of(name, **labels))

    def info(self) -> dict[str, str]:
        """The labels of the first engine's ``vllm_sink_info``."""
        return next(labels for labels, _ in self.of("vllm_sink_info"))
