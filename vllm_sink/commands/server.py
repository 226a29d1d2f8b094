"""A running server, over HTTP: its models and its metrics."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

from prometheus_client.parser import text_string_to_metric_families

from vllm_sink.errors import PolicyError


class ServerError(Exception):
    """A server that does not answer, or not what was asked for; the text says which."""


def base_url(text: str) -> str:
    """The server's address without ``/v1`` or a slash at its end.

    Raises:
        PolicyError: it is no HTTP address.
    """
    parts = urlsplit(text)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise PolicyError("URL", text, "an address such as http://localhost:8000")
    return text.rstrip("/").removesuffix("/metrics").removesuffix("/v1").rstrip("/")


class Server:
    """A server of vLLM's.

    Args:
        url: its address.
        timeout: seconds to wait for an answer to begin.
    """

    def __init__(self, url: str, timeout: float = 30.0) -> None:
        self.url = base_url(url)
        self.timeout = timeout

    def open(self, path: str, body: dict[str, Any] | None = None) -> Any:
        """The answer of a GET, or of a POST with a JSON body.

        Raises:
            ServerError: there is none, or it is an error; with the server's own words.
        """
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            self.url + path, data, {"Content-Type": "application/json"}
        )
        try:
            return urllib.request.urlopen(request, timeout=self.timeout)
        except urllib.error.HTTPError as error:
            raise ServerError(
                f"{self.url}{path}: HTTP {error.code}: {_said(error.read())}"
            ) from None
        except OSError as error:
            reason = getattr(error, "reason", error)
            raise ServerError(f"no server answers at {self.url}: {reason}") from None

    def model(self, wanted: str | None) -> dict[str, Any]:
        """The card of the model to ask: ``wanted``, or the only one.

        Raises:
            ServerError: it is not there, or there is a choice.
        """
        with self.open("/v1/models") as answer:
            cards: dict[str, dict[str, Any]] = {c["id"]: c for c in json.load(answer)["data"]}
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
        with self.open("/metrics") as answer:
            found = Metrics(answer.read().decode())
        if not found.has("vllm_sink_info"):
            raise ServerError(
                f"{self.url}/metrics has no vllm_sink_* metrics: the server runs without "
                "--kv-policy sink, or with --disable-log-stats"
            )
        return found


def _said(text: bytes) -> str:
    """The message of an error's JSON, or the text as it is."""
    try:
        return str(json.loads(text)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return text.decode(errors="replace").strip()[:200]


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
