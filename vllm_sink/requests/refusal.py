"""Refusals of the engine core, as clients get them: an HTTP status and a text.

vLLM's core can end a request with an error and no more (``FinishReason.ERROR``, HTTP 500). The
status travels in the ``stop_reason`` of such an output, which only the core writes.
"""

from __future__ import annotations

from dataclasses import dataclass
from http import HTTPStatus

from vllm.v1.engine import EngineCoreOutput, FinishReason

_MARK = "vllm-sink:"


@dataclass(frozen=True)
class Refusal:
    """Why a request is not served.

    Attributes:
        status: 429 or 503.
        retry_after: seconds after which the client may try again.
        message: for the client.
    """

    status: HTTPStatus
    retry_after: int
    message: str

    def output(self, request_id: str) -> EngineCoreOutput:
        """The engine core's last output of the request."""
        reason = f"{_MARK}{self.status.value}:{self.retry_after}:{self.message}"
        return EngineCoreOutput(
            request_id, [], finish_reason=FinishReason.ERROR, stop_reason=reason
        )

    @classmethod
    def of(cls, output: EngineCoreOutput) -> Refusal | None:
        """The refusal that an output carries, if any."""
        reason = output.stop_reason
        if output.finish_reason != FinishReason.ERROR or not isinstance(reason, str):
            return None
        if not reason.startswith(_MARK):
            return None
        status, after, message = reason[len(_MARK) :].split(":", 2)
        return cls(HTTPStatus(int(status)), int(after), message)


class RefusedError(Exception):
    """The scheduler refuses a request.

    Attributes:
        refusal: what its client gets.
    """

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.message)
        self.refusal = refusal
