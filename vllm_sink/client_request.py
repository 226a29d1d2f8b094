"""An HTTP request as its client wrote it, before anything parses it.

Handlers see a request after pydantic has converted it (``true`` is 1 by then) and after a route has
dropped what it has no field for. ``vllm_sink/requests/checks.py`` checks what was written,
and reads it here. Nothing in it is trusted.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from typing import Any

import msgspec

from vllm_sink.errors import PolicyError

#: The request that this task answers; unset where an engine is used from Python.
CLIENT_REQUEST: ContextVar[ClientRequest] = ContextVar("vllm_sink_client_request")

#: The fields by which vLLM's protocols name the length of an answer.
LENGTHS = ("max_tokens", "max_completion_tokens", "max_output_tokens")

_RAW_FIELDS = msgspec.json.Decoder(dict[str, msgspec.Raw])


class ClientRequest:
    """One HTTP request.

    Args:
        headers: names in lower case, and values, as ASGI has them.
        fields: the top-level fields of its body, where they are known already.

    Attributes:
        system_tokens: length of the leading system message as the chat template renders it; None
            until a chat is rendered, or if it has none.
    """

    def __init__(
        self,
        headers: Sequence[tuple[bytes, bytes]] = (),
        fields: Mapping[str, Any] | None = None,
    ) -> None:
        self._headers = headers
        self._chunks: list[bytes] = []
        self._fields = fields
        self._on_settled: Callable[[], None] | None = None
        self.system_tokens: int | None = None
        self.refusal: Exception | None = None
        self.settled = False

    # -- what was written -------------------------------------------------------------------------

    def receive(self, chunk: bytes) -> None:
        """Take a part of the body."""
        self._chunks.append(chunk)

    @property
    def fields(self) -> Mapping[str, Any]:
        """The body's top-level fields as they were written; empty if it is not a JSON object.

        Only fields that are read are decoded: a prompt stays bytes.
        """
        if self._fields is None:
            body, self._chunks = b"".join(self._chunks), []
            self._fields = _Fields(body)
        return self._fields

    @property
    def options(self) -> Mapping[str, Any]:
        """Options for the engine: ``vllm_xargs``, or ``extra_args`` of sampling parameters
        (``/inference/v1/generate``)."""
        params = self.fields.get("sampling_params")
        inner = params.get("extra_args") if isinstance(params, Mapping) else None
        found: dict[str, Any] = {}
        for options in (inner, self.fields.get("vllm_xargs")):
            if isinstance(options, str):  # a form's field (transcriptions) is JSON in a string
                options = _loads(options)
            if isinstance(options, Mapping):
                found.update(options)
        return found

    @property
    def names_length(self) -> bool:
        """Whether the request sets a maximum length of its answer."""
        params = self.fields.get("sampling_params")
        places = [self.fields, params if isinstance(params, Mapping) else {}]
        return any(place.get(name) is not None for place in places for name in LENGTHS)

    @property
    def user(self) -> str | None:
        """OpenAI's ``user``, or Anthropic's ``metadata.user_id``."""
        user = self.fields.get("user")
        if user is None and isinstance(metadata := self.fields.get("metadata"), Mapping):
            user = metadata.get("user_id")
        return user if isinstance(user, str) else None

    def header(self, name: str) -> str | None:
        """A header's value.

        Raises:
            PolicyError: it occurs more than once. Taking the first or the last would let a client
                overrule a gateway.
        """
        wanted = name.encode("latin-1")
        values = [value for key, value in self._headers if key == wanted]
        if len(values) > 1:
            raise PolicyError(name, f"{len(values)} headers", "one")
        return values[0].decode("latin-1") if values else None

    # -- its outcome ------------------------------------------------------------------------------

    def refuse(self, error: Exception) -> None:
        """Record why it is refused; the first refusal counts."""
        if self.refusal is None:
            self.refusal = error
        self._settle()

    def answered(self) -> None:
        """The engine core has begun an answer: no refusal can follow."""
        if not self.settled:
            self._settle()

    def on_settled(self, call: Callable[[], None]) -> None:
        """Call ``call`` when the request is refused or answered; immediately if it already is."""
        self._on_settled = call
        if self.settled:
            call()

    def _settle(self) -> None:
        self.settled = True
        if self._on_settled is not None:
            self._on_settled()


class _Fields(Mapping[str, Any]):
    """The top-level fields of a JSON object, each decoded when it is asked for."""

    def __init__(self, body: bytes) -> None:
        self._decoded: dict[str, Any] = {}
        self._raw: dict[str, msgspec.Raw] = {}
        try:
            self._raw = _RAW_FIELDS.decode(body) if body else {}
        except (msgspec.DecodeError, UnicodeDecodeError):
            # Python's parser, which vLLM's server uses, also takes NaN and UTF-16.
            loaded = _loads(body)
            if isinstance(loaded, dict):
                self._raw = dict.fromkeys(loaded, msgspec.Raw())
                self._decoded = loaded

    def __getitem__(self, name: str) -> Any:
        if name not in self._decoded:
            self._decoded[name] = _loads(bytes(self._raw[name]))
        return self._decoded[name]

    def __iter__(self) -> Any:
        return iter(self._raw)

    def __len__(self) -> int:
        return len(self._raw)


def _loads(text: str | bytes) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
