"""How many streams there may be and how long a request waits: ``additional_config`` and flags."""

from __future__ import annotations

from dataclasses import dataclass

from vllm_sink.config.sections import require_int, section_of
from vllm_sink.errors import PolicyError

#: The key of ``additional_config``.
CONFIG_KEY = "sink_admission"

#: Fields and the flags that set them.
FLAGS = {
    "default_max_tokens": "--sink-default-max-tokens",
    "max_streams": "--sink-max-streams",
    "stream_share": "--sink-stream-share",
    "queue_timeout": "--sink-queue-timeout",
    "max_unsent_mib": "--sink-max-unsent-mib",
}

#: Of the pool, what streams may have; the rest is the others' alone.
DEFAULT_STREAM_SHARE = 0.8

#: Seconds: longer than most clients and gateways wait.
DEFAULT_QUEUE_TIMEOUT = 300.0

#: MiB: some 400,000 tokens without log-probabilities.
DEFAULT_MAX_UNSENT_MIB = 16.0


@dataclass(frozen=True)
class AdmissionConfig:
    """Who is let in.

    Attributes:
        default_max_tokens: of an answer whose request names no length; None: it ends where the
            model's context does.
        max_streams: streams of an engine; None for what fits into their share.
        stream_share: of the pool's blocks, and of ``--max-num-seqs``.
        queue_timeout: seconds that a request waits for its blocks.
        max_unsent_mib: MiB of a stream that may wait in the server for its client.
    """

    default_max_tokens: int | None = None
    max_streams: int | None = None
    stream_share: float = DEFAULT_STREAM_SHARE
    queue_timeout: float = DEFAULT_QUEUE_TIMEOUT
    max_unsent_mib: float = DEFAULT_MAX_UNSENT_MIB

    def streams_of(self, max_num_seqs: int) -> int:
        """Streams of an engine, at most; others want a place in its batch as well."""
        return self.max_streams or max(1, int(self.stream_share * max_num_seqs))

    @classmethod
    def from_config(cls, additional_config: object) -> AdmissionConfig:
        """Read ``additional_config``.

        Raises:
            PolicyError: a field is unknown, of the wrong type or out of range.
        """
        given = section_of(additional_config, CONFIG_KEY, FLAGS, '{"max_streams": 8}')
        whole = {
            key: None if given.get(key) is None else require_int(FLAGS[key], given[key], 1)
            for key in ("default_max_tokens", "max_streams")
        }
        share = require_share(FLAGS["stream_share"], given.get("stream_share"))
        timeout = require_seconds(FLAGS["queue_timeout"], given.get("queue_timeout"))
        unsent = require_mib(FLAGS["max_unsent_mib"], given.get("max_unsent_mib"))
        return cls(**whole, stream_share=share, queue_timeout=timeout, max_unsent_mib=unsent)


def require_share(field: str, value: object) -> float:
    """A part of a whole, or its default for None.

    Raises:
        PolicyError: naming the field, the value and what is allowed.
    """
    return _number(field, value, DEFAULT_STREAM_SHARE, 1, "a number above 0, and at most 1")


def require_seconds(field: str, value: object) -> float:
    """A time, likewise."""
    allowed = "seconds: a number above 0, and at most 1e9"
    return _number(field, value, DEFAULT_QUEUE_TIMEOUT, 1e9, allowed)


def require_mib(field: str, value: object) -> float:
    """A size, likewise."""
    allowed = "MiB: a number above 0, and at most 1e6"
    return _number(field, value, DEFAULT_MAX_UNSENT_MIB, 1e6, allowed)


def _number(field: str, value: object, default: float, most: float, allowed: str) -> float:
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= most:
        raise PolicyError(field, value, allowed)
    return float(value)
