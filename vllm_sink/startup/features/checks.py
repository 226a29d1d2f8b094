"""Whether a config, or a command line, asks for a refused feature."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from typing import Any

from vllm_sink.startup.features.values import text_of


@dataclass(frozen=True)
class Check:
    """Whether a ``VllmConfig`` asks for a refused feature.

    Attributes:
        asks: whether it does.
        settings: dotted names of what ``asks`` reads, whose values an error states.
        state: likewise, if it is not a setting of the config.
    """

    asks: Callable[[Any], bool]
    settings: tuple[str, ...] = ()
    state: Callable[[], str] | None = None

    def __call__(self, vllm_config: Any) -> bool:
        return self.asks(vllm_config)

    def values(self, vllm_config: Any) -> str:
        """What is set, as ``part.field=value``."""
        if self.state is not None:
            return self.state()
        return ", ".join(f"{name}={text_of(setting(vllm_config, name))}" for name in self.settings)


def setting(vllm_config: Any, name: str, default: Any = None) -> Any:
    """The value of ``part.field`` of a config; ``default`` where this vLLM has none."""
    missing = object()
    found = reduce(lambda part, field: getattr(part, field, missing), name.split("."), vllm_config)
    return default if found is missing else found


def differs(part: str, field: str, ordinary: Any = None) -> Check:
    """``vllm_config.part.field`` is there, and neither ordinary nor this vLLM's default."""

    def asks(vllm_config: Any) -> bool:
        owner = getattr(vllm_config, part, None)
        value = getattr(owner, field, ordinary)
        declared = getattr(owner, "__dataclass_fields__", {}).get(field)
        return bool(value != ordinary and (declared is None or value != declared.default))

    return Check(asks, (f"{part}.{field}",))


def set_to(value: Any, *names: str) -> Check:
    """One of the named settings has this value."""
    return Check(lambda c: any(setting(c, name) == value for name in names), names)


def given(*names: str) -> Check:
    """One of the named settings is neither empty nor None."""
    return Check(lambda c: any(bool(setting(c, name)) for name in names), names)


def above(number: float, *names: str) -> Check:
    """One of the named settings is larger."""
    return Check(lambda c: any(setting(c, name, number) > number for name in names), names)


def there(part: str) -> Check:
    """The config has this part."""
    return Check(lambda c: getattr(c, part, None) is not None, (part,))


def any_of(*checks: Check) -> Check:
    """One of these checks holds."""
    names = tuple(name for check in checks for name in check.settings)
    return Check(lambda c: any(check(c) for check in checks), names)


def either(*asks: Callable[[Any], bool]) -> Callable[[Any], bool]:
    """Whether one of these holds for a command line, or an ``EngineArgs``."""
    return lambda args: any(check(args) for check in asks)


def flag(field: str) -> Callable[[Any], bool]:
    """Whether a command line, or an ``EngineArgs``, sets a flag."""
    return lambda args: bool(getattr(args, field, None))


def flag_above_one(field: str) -> Callable[[Any], bool]:
    """Whether a command line, or an ``EngineArgs``, sets a flag above 1."""
    return lambda args: (getattr(args, field, None) or 0) > 1
