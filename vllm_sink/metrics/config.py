"""Which tenant label a server shows: ``additional_config["sink_metrics"]`` and its flags."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vllm_sink.errors import PolicyError
from vllm_sink.policy import require_int

#: The key of ``additional_config``.
CONFIG_KEY = "sink_metrics"

#: Names that get a label of their own unless ``--sink-max-tenants`` says otherwise.
DEFAULT_MAX_TENANTS = 20

#: What ``--sink-tenant-label`` takes, as shown to users.
ALLOWED = "off, user, or header:NAME"

_HEADER = re.compile(r"header:([A-Za-z0-9!#$%&'*+.^_`|~-]+)")  # a token of RFC 9110


@dataclass(frozen=True)
class MetricsConfig:
    """Where a request's tenant is read from.

    Attributes:
        source: ``off``, ``user`` (the request's ``user``) or ``header:NAME``.
        max_tenants: names that get a label of their own.
    """

    source: str = "off"
    max_tenants: int = DEFAULT_MAX_TENANTS

    @property
    def on(self) -> bool:
        return self.source != "off"

    @property
    def header(self) -> str | None:
        """The header's name in lower case, where one is read."""
        found = _HEADER.fullmatch(self.source)
        return found[1].lower() if found else None

    @classmethod
    def from_config(cls, additional_config: object) -> MetricsConfig:
        """Read ``additional_config``.

        Raises:
            PolicyError: a field is unknown, of the wrong type or out of range.
        """
        config = additional_config if isinstance(additional_config, Mapping) else {}
        given = config.get(CONFIG_KEY, {})
        if not isinstance(given, Mapping):
            raise PolicyError(CONFIG_KEY, given, 'a mapping such as {"tenant_label": "user"}')
        for key in given:
            if key not in ("tenant_label", "max_tenants"):
                raise PolicyError(f"{CONFIG_KEY}.{key}", given[key], "tenant_label or max_tenants")
        source = require_source("--sink-tenant-label", given.get("tenant_label", "off"))
        most = given.get("max_tenants", DEFAULT_MAX_TENANTS)
        return cls(source, require_int("--sink-max-tenants", most, 1))


def require_source(field: str, value: Any) -> str:
    """``value`` if it names a source of the tenant.

    Raises:
        PolicyError: it does not.
    """
    if isinstance(value, str) and (value in ("off", "user") or _HEADER.fullmatch(value)):
        return value
    raise PolicyError(field, value, ALLOWED)
