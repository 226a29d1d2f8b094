"""How many streams there may be and how long a request waits: ``additional_config`` and flags."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field
from pydantic.dataclasses import dataclass

from vllm_sink.config.fields import STRICT, Allowed, Flag, flags_of, named_by_flag, validated
from vllm_sink.config.sections import parsed_once, section_of

#: The key of ``additional_config``.
CONFIG_KEY = "sink_admission"

#: Of the pool, what streams may have; the rest is the others' alone.
DEFAULT_STREAM_SHARE = 0.8


@dataclass(frozen=True, config=STRICT)
class AdmissionConfig:
    """Which requests are admitted, and what a stream may take of the server."""

    default_max_tokens: Annotated[
        int | None,
        Flag("--sink-default-max-tokens", "N", "it ends where the model's context does"),
    ] = Field(
        default=None,
        ge=1,
        description="Length of an answer whose request names none and does not ask to be endless "
        '("vllm_xargs": {"endless": true}).',
    )
    max_streams: Annotated[
        int | None,
        Flag(
            "--sink-max-streams",
            "N",
            "--sink-stream-share of --max-num-seqs, and what fits into that share of the KV pool",
        ),
    ] = Field(
        default=None,
        ge=1,
        description="Live streams (endless requests, or with max_tokens past the model's context) "
        "of an engine; more are refused with HTTP 429.",
    )
    stream_share: Annotated[float, Flag("--sink-stream-share", "X")] = Field(
        default=DEFAULT_STREAM_SHARE,
        gt=0,
        le=1,
        description="Part of the KV pool that can be promised to streams. Other requests may use "
        "all that streams do not hold yet.",
    )
    # Longer than most clients and gateways wait.
    queue_timeout: Annotated[
        float,
        Flag("--sink-queue-timeout", "SECONDS"),
        Allowed(unit="seconds"),
    ] = Field(
        default=300.0,
        gt=0,
        le=1e9,
        description="How long a request waits for its KV blocks; then it ends with HTTP 503.",
    )
    # 16 MiB are some 400,000 tokens without log-probabilities.
    max_unsent_mib: Annotated[
        float,
        Flag("--sink-max-unsent-mib", "MIB"),
        Allowed(unit="MiB"),
    ] = Field(
        default=16.0,
        gt=0,
        le=1e6,
        description="Memory that a stream's answer may take while it waits for its client, which "
        "does not read or wants it in one piece; then the stream ends with what there is.",
    )

    def streams_of(self, max_num_seqs: int) -> int:
        """Streams of an engine, at most; others want a place in its batch as well."""
        return self.max_streams or max(1, int(self.stream_share * max_num_seqs))

    @classmethod
    def from_config(cls, additional_config: object) -> AdmissionConfig:
        """Read ``additional_config``.

        Raises:
            PolicyError: a field is unknown, of the wrong type or out of range.
        """
        return _read(section_of(additional_config, CONFIG_KEY, '{"max_streams": 8}'))


#: Fields and the flags that set them.
FLAGS = flags_of(AdmissionConfig)

_called = named_by_flag(AdmissionConfig, CONFIG_KEY)


@parsed_once
def _read(given: Mapping[str, Any]) -> AdmissionConfig:
    return validated(AdmissionConfig, given, _called)
