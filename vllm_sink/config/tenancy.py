"""Tenants, as the operator has them: ``additional_config["sink_tenancy"]`` and its flags."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cached_property
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from vllm_sink.config.fields import STRICT, Allowed, Flag, flags_of, named_by_flag, validated
from vllm_sink.config.sections import parsed_once, section_of
from vllm_sink.errors import PolicyError

#: The key of ``additional_config``.
CONFIG_KEY = "sink_tenancy"

_HEADER = re.compile(r"header:([A-Za-z0-9!#$%&'*+.^_`|~-]+)")  # a token of RFC 9110

_ANY = "any number"


@dataclass(frozen=True, config=STRICT)
class Limits:
    """What somebody may have at once; None for any number."""

    max_streams: int | None = Field(default=None, ge=0, description="Live streams.")
    max_pinned_tokens: int | None = Field(
        default=None, ge=0, description="Sink tokens of its live requests together."
    )
    max_queued_requests: int | None = Field(
        default=None, ge=0, description="Requests that have no token yet."
    )
    tokens_per_minute: int | None = Field(
        default=None,
        ge=1,
        description="Tokens of prompts and answers; what is over is waited for before the next "
        "request.",
    )

    @property
    def any(self) -> bool:
        """Whether anything is limited."""
        return any(value is not None for value in vars(self).values())


@dataclass(frozen=True, config=STRICT)
class TenancyConfig:
    """Where a request's tenant is read from, what each may have, and how it is shown."""

    tenant_label: Annotated[
        str,
        Flag(
            "--sink-tenant-label", "{off,user,key,header:NAME}", "off; key with --sink-tenant-keys"
        ),
        Allowed("off, user, key, or header:NAME"),
    ] = Field(
        default="off",
        pattern=rf"^(off|user|key|{_HEADER.pattern})$",
        description="Who a request's tenant is, by whom /metrics shows streams, blocks and tokens "
        "and who takes turns in the queue: its 'user', which a client writes itself; a header that "
        "a gateway sets; or whose key of --sink-tenant-keys it has.",
    )
    max_tenants: Annotated[int, Flag("--sink-max-tenants", "N")] = Field(
        default=20,
        ge=1,
        description="Tenants with a label of their own; all later ones share 'other'.",
    )
    tenant_names: Annotated[Literal["hashed", "plain"], Flag("--sink-tenant-names")] = Field(
        default="hashed",
        description="How /metrics names tenants: by the first 12 hexadecimal digits of their "
        "names' SHA-256, or as they are.",
    )
    keys_file: Annotated[
        str | None, Flag("--sink-tenant-keys", "FILE"), Allowed("the path of a file")
    ] = Field(
        default=None,
        validation_alias="tenant_keys",
        min_length=1,
        description="YAML with name, keys and limits of each tenant; every route but health and "
        "metrics then needs one of the keys. Read again on change and on SIGHUP.",
    )
    isolate: Annotated[bool, Flag("--sink-isolate-tenants")] = Field(
        default=False,
        validation_alias="isolate_tenants",
        description="No tenant's cached prefixes serve another (vLLM's cache_salt): no time to the "
        "first token tells what others said.",
    )
    max_streams: Annotated[int | None, Flag("--sink-tenant-max-streams", "N", _ANY)] = Field(
        default=None,
        ge=0,
        description="Live streams of a tenant on this server; more is refused with HTTP 429.",
    )
    max_pinned_tokens: Annotated[
        int | None,
        Flag("--sink-tenant-max-pinned-tokens", "N", _ANY),
    ] = Field(
        default=None,
        ge=0,
        description="Sink tokens of a tenant's live requests together; more is refused with HTTP "
        "429.",
    )
    max_queued_requests: Annotated[
        int | None,
        Flag("--sink-tenant-max-queued-requests", "N", _ANY),
    ] = Field(
        default=None,
        ge=0,
        description="Requests of a tenant that have no token yet; more is refused with HTTP 429.",
    )
    tokens_per_minute: Annotated[
        int | None,
        Flag("--sink-tenant-tokens-per-minute", "N", _ANY),
    ] = Field(
        default=None,
        ge=1,
        description="Tokens a minute of a tenant's prompts and answers (a stream continues, its "
        "tenant's next request waits); more is refused with HTTP 429.",
    )
    total_max_pinned_tokens: Annotated[
        int | None,
        Flag("--sink-max-pinned-tokens", "N", _ANY),
    ] = Field(
        default=None,
        ge=0,
        description="Sink tokens of all live requests together; more is refused with HTTP 429.",
    )
    total_tokens_per_minute: Annotated[
        int | None,
        Flag("--sink-tokens-per-minute", "N", _ANY),
    ] = Field(
        default=None,
        ge=1,
        description="Tokens a minute of all tenants together, likewise; more is refused with HTTP "
        "429.",
    )
    require_api_key: Annotated[bool, Flag("--sink-require-api-key")] = Field(
        default=False,
        description="Do not start without an API key (--api-key, or VLLM_API_KEY): a server whose "
        "secret is missing must not be open to all.",
    )

    @model_validator(mode="after")
    def _says_who_is_who(self) -> TenancyConfig:
        label = self.tenant_label
        if self.keys_file is not None and label != "key":
            raise PolicyError(FLAGS["tenant_label"], label, "key, with --sink-tenant-keys")
        if label == "key" and self.keys_file is None:
            raise PolicyError(FLAGS["tenant_label"], label, "key only with --sink-tenant-keys")
        each: dict[str, Any] = {**vars(self.limits), "isolate_tenants": self.isolate or None}
        for key, value in each.items():
            if value is not None and not self.on:
                raise PolicyError(
                    FLAGS[key],
                    value,
                    "only with --sink-tenant-label or --sink-tenant-keys, which say who is who",
                )
        return self

    @cached_property
    def limits(self) -> Limits:
        """Of each tenant that the file of keys does not give its own."""
        return Limits(
            self.max_streams,
            self.max_pinned_tokens,
            self.max_queued_requests,
            self.tokens_per_minute,
        )

    @cached_property
    def total(self) -> Limits:
        """Of all tenants together."""
        return Limits(
            max_pinned_tokens=self.total_max_pinned_tokens,
            tokens_per_minute=self.total_tokens_per_minute,
        )

    @property
    def on(self) -> bool:
        """Whether requests have a tenant."""
        return self.tenant_label != "off"

    @property
    def plain_names(self) -> bool:
        """Whether labels are the names themselves, not their hashes."""
        return self.tenant_names == "plain"

    @property
    def header(self) -> str | None:
        """The header's name in lower case, where one is read."""
        found = _HEADER.fullmatch(self.tenant_label)
        return found[1].lower() if found else None

    @cached_property
    def counts(self) -> bool:
        """Whether this process must count what tenants have: the file may limit them too."""
        return self.limits.any or self.total.any or self.keys_file is not None

    @classmethod
    def from_config(cls, additional_config: object) -> TenancyConfig:
        """Read ``additional_config``.

        Raises:
            PolicyError: a field is unknown, of the wrong type or out of range, or needs another.
        """
        return _read(section_of(additional_config, CONFIG_KEY, '{"tenant_label": "user"}'))


#: Fields and the flags that set them.
FLAGS = flags_of(TenancyConfig)

_called = named_by_flag(TenancyConfig, CONFIG_KEY)


@parsed_once
def _read(given: Mapping[str, Any]) -> TenancyConfig:
    if given.get("tenant_keys") and given.get("tenant_label") is None:
        given = {**given, "tenant_label": "key"}
    return validated(TenancyConfig, given, _called)
