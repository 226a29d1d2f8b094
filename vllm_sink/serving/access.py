"""Who may have how much: ``additional_config["sink_access"]`` and its flags."""

from __future__ import annotations

from dataclasses import dataclass

from vllm_sink.errors import PolicyError
from vllm_sink.metrics.config import MetricsConfig
from vllm_sink.policy import require_int, section_of

#: The key of ``additional_config``.
CONFIG_KEY = "sink_access"

#: Fields and the flags that set them.
FLAGS = {
    "max_streams": "--sink-tenant-max-streams",
    "max_pinned_tokens": "--sink-tenant-max-pinned-tokens",
    "require_api_key": "--sink-require-api-key",
}


@dataclass(frozen=True)
class Access:
    """Limits of each tenant on this server, and whether it may be open to all.

    Attributes:
        max_streams: live streams, None for any number.
        max_pinned_tokens: sink tokens of its live streams together, None for any number.
        require_api_key: refuse to start without a key.
    """

    max_streams: int | None = None
    max_pinned_tokens: int | None = None
    require_api_key: bool = False

    @property
    def limited(self) -> bool:
        """Whether a tenant has any limit."""
        return self.max_streams is not None or self.max_pinned_tokens is not None

    @classmethod
    def from_config(cls, additional_config: object) -> Access:
        """Read ``additional_config``.

        Raises:
            PolicyError: a field is unknown, of the wrong type or out of range, or there is a limit
                for tenants where nothing says who is one.
        """
        given = section_of(additional_config, CONFIG_KEY, FLAGS, '{"max_streams": 8}')
        numbers = {
            key: None if given.get(key) is None else require_int(FLAGS[key], given[key], 0)
            for key in ("max_streams", "max_pinned_tokens")
        }
        access = cls(**numbers, require_api_key=given.get("require_api_key", False) is True)
        if access.limited and not MetricsConfig.from_config(additional_config).on:
            key, value = next((k, v) for k, v in numbers.items() if v is not None)
            raise PolicyError(
                FLAGS[key], value, "a limit only with --sink-tenant-label, which says who is who"
            )
        return access
