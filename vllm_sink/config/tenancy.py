"""Tenants, as the operator has them: ``additional_config["sink_tenancy"]`` and its flags."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from vllm_sink.config.sections import require_int, section_of
from vllm_sink.errors import PolicyError

#: The key of ``additional_config``.
CONFIG_KEY = "sink_tenancy"

#: Fields and the flags that set them.
FLAGS = {
    "tenant_label": "--sink-tenant-label",
    "max_tenants": "--sink-max-tenants",
    "tenant_names": "--sink-tenant-names",
    "tenant_keys": "--sink-tenant-keys",
    "isolate_tenants": "--sink-isolate-tenants",
    "max_streams": "--sink-tenant-max-streams",
    "max_pinned_tokens": "--sink-tenant-max-pinned-tokens",
    "max_queued_requests": "--sink-tenant-max-queued-requests",
    "tokens_per_minute": "--sink-tenant-tokens-per-minute",
    "total_max_pinned_tokens": "--sink-max-pinned-tokens",
    "total_tokens_per_minute": "--sink-tokens-per-minute",
    "require_api_key": "--sink-require-api-key",
}

#: Names that get a label of their own unless ``--sink-max-tenants`` says otherwise.
DEFAULT_MAX_TENANTS = 20

#: What ``--sink-tenant-label`` takes, as shown to users.
ALLOWED = "off, user, key, or header:NAME"

#: What ``--sink-tenant-names`` takes.
NAMES = ("hashed", "plain")

_HEADER = re.compile(r"header:([A-Za-z0-9!#$%&'*+.^_`|~-]+)")  # a token of RFC 9110


@dataclass(frozen=True)
class Limits:
    """What somebody may have at once; None for any number.

    Attributes:
        max_streams: live streams.
        max_pinned_tokens: sink tokens of its live requests together.
        max_queued_requests: requests that have no token yet.
        tokens_per_minute: of prompts and answers; what is over is waited for before the next
            request.
    """

    max_streams: int | None = None
    max_pinned_tokens: int | None = None
    max_queued_requests: int | None = None
    tokens_per_minute: int | None = None

    @property
    def any(self) -> bool:
        """Whether anything is limited."""
        return any(value is not None for value in vars(self).values())

    @classmethod
    def read(cls, given: Mapping[str, Any], names: Mapping[str, str]) -> Limits:
        """Read those fields that ``given`` has.

        Args:
            given: by field.
            names: what an error calls a field.

        Raises:
            PolicyError: one is no number.
        """
        least = {"tokens_per_minute": 1}
        return cls(
            **{
                limit: require_int(names[limit], given[limit], least.get(limit, 0))
                for limit in cls.__dataclass_fields__
                if given.get(limit) is not None
            }
        )


@dataclass(frozen=True)
class TenancyConfig:
    """Where a request's tenant is read from, what each may have, and how it is shown.

    Attributes:
        source: ``off``, ``user`` (the request's ``user``), ``key`` or ``header:NAME``.
        max_tenants: names that get a label of their own.
        plain_names: labels are the names themselves, not their hashes.
        keys_file: of tenants' keys; None without.
        isolate: no tenant's prefix cache serves another.
        limits: of each tenant that the file does not give its own.
        total: of all tenants together.
        require_api_key: refuse to start without a key.
    """

    source: str = "off"
    max_tenants: int = DEFAULT_MAX_TENANTS
    plain_names: bool = False
    keys_file: str | None = None
    isolate: bool = False
    limits: Limits = field(default_factory=Limits)
    total: Limits = field(default_factory=Limits)
    require_api_key: bool = False

    @property
    def on(self) -> bool:
        """Whether requests have a tenant."""
        return self.source != "off"

    @property
    def header(self) -> str | None:
        """The header's name in lower case, where one is read."""
        found = _HEADER.fullmatch(self.source)
        return found[1].lower() if found else None

    @property
    def counts(self) -> bool:
        """Whether this process must count what tenants have: the file may limit them too."""
        return self.limits.any or self.total.any or self.keys_file is not None

    @classmethod
    def from_config(cls, additional_config: object) -> TenancyConfig:
        """Read ``additional_config``.

        Raises:
            PolicyError: a field is unknown, of the wrong type or out of range, or needs another.
        """
        given = section_of(additional_config, CONFIG_KEY, FLAGS, '{"tenant_label": "user"}')
        keys_file = given.get("tenant_keys")
        if keys_file is not None and (not isinstance(keys_file, str) or not keys_file):
            raise PolicyError(FLAGS["tenant_keys"], keys_file, "the path of a file")
        source = require_source(
            FLAGS["tenant_label"], given.get("tenant_label", "key" if keys_file else "off")
        )
        if keys_file and source != "key":
            raise PolicyError(FLAGS["tenant_label"], source, "key, with --sink-tenant-keys")
        if source == "key" and not keys_file:
            raise PolicyError(FLAGS["tenant_label"], source, "key only with --sink-tenant-keys")
        names = given.get("tenant_names", "hashed")
        if names not in NAMES:
            raise PolicyError(FLAGS["tenant_names"], names, " or ".join(NAMES))
        total = {
            name.removeprefix("total_"): value
            for name, value in given.items()
            if name.startswith("total_")
        }
        config = cls(
            source,
            require_int(FLAGS["max_tenants"], given.get("max_tenants", DEFAULT_MAX_TENANTS), 1),
            plain_names=names == "plain",
            keys_file=keys_file,
            isolate=given.get("isolate_tenants", False) is True,
            limits=Limits.read(given, FLAGS),
            total=Limits.read(total, {name: FLAGS[f"total_{name}"] for name in total}),
            require_api_key=given.get("require_api_key", False) is True,
        )
        if not config.on and (config.limits.any or config.isolate):
            needs = (*vars(config.limits), "isolate_tenants")
            name = next(n for n in needs if given.get(n) is not None)
            raise PolicyError(
                FLAGS[name],
                given[name],
                "only with --sink-tenant-label or --sink-tenant-keys, which say who is who",
            )
        return config


def require_source(field: str, value: Any) -> str:
    """``value`` if it names a source of the tenant.

    Raises:
        PolicyError: it does not.
    """
    if isinstance(value, str) and (value in ("off", "user", "key") or _HEADER.fullmatch(value)):
        return value
    raise PolicyError(field, value, ALLOWED)
