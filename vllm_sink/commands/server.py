"""A running server, over HTTP: its models, its metrics, and a stream of its own.

``openai`` and ``httpx``, both requirements of vLLM, are imported where they are used: that takes a
second, and the other commands do not need them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cached_property
from typing import TYPE_CHECKING, Any

from vllm_sink.commands.errors import BrokenStream, ServerError
from vllm_sink.commands.key import Key
from vllm_sink.commands.scrape import Metrics
from vllm_sink.errors import PolicyError

if TYPE_CHECKING:
    import httpx
    from openai import OpenAI, Stream
    from openai.types import Completion

#: Seconds to wait for a connection. For an answer there is no limit: a full server is only slow.
CONNECT_TIMEOUT = 30.0


def base_url(text: str) -> str:
    """The server's address without ``/v1`` or a slash at its end.

    Raises:
        PolicyError: it is not an HTTP address.
    """
    import httpx

    try:
        url = httpx.URL(text)
    except httpx.InvalidURL:
        url = httpx.URL()
    if url.scheme not in ("http", "https") or not url.host:
        raise PolicyError("URL", text, "an address such as http://localhost:8000")
    return text.rstrip("/").removesuffix("/metrics").removesuffix("/v1").rstrip("/")


class Server:
    """A vLLM server.

    Args:
        url: its address.
        key: its API key, if it has one.
    """

    def __init__(self, url: str, key: Key | None = None) -> None:
        self.url = base_url(url)
        self.key = key

    @cached_property
    def client(self) -> OpenAI:
        """Client for the OpenAI API."""
        import openai

        return openai.OpenAI(
            base_url=f"{self.url}/v1",
            api_key=self.key.value if self.key else "EMPTY",  # as vLLM's client: it must have one
            timeout=openai.Timeout(None, connect=CONNECT_TIMEOUT),
            max_retries=0,  # the error is shown instead
        )

    @cached_property
    def http(self) -> httpx.Client:
        """Client for the other paths."""
        import httpx

        return httpx.Client(
            headers={"Authorization": f"Bearer {self.key.value}"} if self.key else {},
            timeout=httpx.Timeout(None, connect=CONNECT_TIMEOUT),
            follow_redirects=True,
        )

    def get(self, path: str) -> str:
        """The body of a GET's response.

        Raises:
            ServerError: there is no response, or it is an error.
        """
        import httpx

        try:
            return self.http.get(self.url + path).raise_for_status().text
        except httpx.HTTPStatusError as error:
            raise self._refused(path, error.response) from None
        except httpx.RequestError as error:
            raise self._lost(path, error) from None

    def model(self, wanted: str | None) -> dict[str, Any]:
        """The card of the model ``wanted``, or of the only one.

        Raises:
            ServerError: it is not served, or none is named and there are several.
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
        """The server's current metrics.

        Raises:
            ServerError: none of them is this project's.
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

    def complete(self, **fields: Any) -> Stream[Completion]:
        """Begin a streamed completion.

        Args:
            fields: as of ``openai``'s ``completions.create``.

        Raises:
            ServerError: the server does not answer, or refuses it; with the server's message.
        """
        import openai

        path = "/v1/completions"
        try:
            stream: Stream[Completion] = self.client.completions.create(stream=True, **fields)
        except openai.APIStatusError as error:
            raise self._refused(path, error.response) from None
        except openai.APIConnectionError as error:
            raise self._lost(path, _cause(error)) from None
        return stream

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
        # Before version 3, openai lets errors of httpx escape from a stream.
        except (openai.APIConnectionError, httpx.HTTPError) as error:
            raise BrokenStream(f"{self.url} went away: {_cause(error)}") from None
        except openai.APIError as error:
            raise BrokenStream(f"{self.url} ended the stream: {error.message}") from None
        except ValueError as error:
            raise BrokenStream(f"{self.url} sent an event that is no JSON: {error}") from None

    def _lost(self, path: str, cause: BaseException) -> ServerError:
        # ConnectError and ConnectTimeout, of httpx or of httpx2, by openai's version.
        if type(cause).__name__.startswith("Connect"):
            return ServerError(f"no server answers at {self.url}: {cause}")
        return ServerError(f"{self.url}{path}: the connection was lost: {cause}")

    def _refused(self, path: str, response: Any) -> ServerError:
        """An error with the server's status and message, what to do about it, and when to retry."""
        refused = f"{self.url}{path}: HTTP {response.status_code}"
        if response.status_code == 401:
            # Without the server's message: some repeat the key.
            where = "set the server's key in VLLM_API_KEY or --api-key"
            if self.key is None:
                return ServerError(f"{refused}: it asks for an API key; {where}")
            return ServerError(f"{refused}: it refuses the key of {self.key.source}; {where}")
        message = _message(response) or response.text.strip()[:200]
        after = response.headers.get("retry-after")
        if after is not None:
            message += f" (Retry-After: {after}{' s' if after.isdecimal() else ''})"
        return ServerError(f"{refused}: {message}")


def _message(response: Any) -> str | None:
    """The message of an error in the OpenAI API's format; None for other formats."""
    try:
        body = response.json()
        return str(body.get("error", body)["message"])
    except (ValueError, AttributeError, KeyError, TypeError):
        return None


def _cause(error: BaseException) -> BaseException:
    """The HTTP library's error behind the client's own "Connection error."."""
    return error.__cause__ or error
