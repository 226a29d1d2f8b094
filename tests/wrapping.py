"""A wrapper around a function, without replacing an attribute of vLLM's."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any


def wrapped(function: Callable[..., Any], wrapper: Callable[..., Any]) -> Callable[..., Any]:
    """``function`` as ``vllm_sink.compat.install`` would wrap it; called with its object first."""

    def call(instance: Any, *args: Any, **kwargs: Any) -> Any:
        return wrapper(partial(function, instance), instance, *args, **kwargs)

    return call
