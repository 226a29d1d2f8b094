"""Every place where this package leans on more of vLLM than vLLM promises.

Version differences live here alone; the rest of the package imports these names.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

ATTENTION_BACKEND = "vllm_sink.attention.backend.SinkAttentionBackend"


@contextmanager
def attention_backend_override() -> Iterator[None]:
    """While a model is built, every decoder layer gets the sink backend.

    ``register_backend`` is vLLM's own interface. The CPU platform takes ``CPU_ATTN`` whatever was
    asked for, so there that name is overridden, and only for as long as this model is being built:
    another engine in the process keeps the stock backend. The selector's cache does not know the
    policy, so it is emptied on both sides.
    """
    from vllm.platforms import current_platform
    from vllm.v1.attention import selector
    from vllm.v1.attention.backends.registry import AttentionBackendEnum, register_backend

    register_backend(AttentionBackendEnum.CUSTOM, ATTENTION_BACKEND)
    name = AttentionBackendEnum.CPU_ATTN if current_platform.is_cpu() else None
    if name is not None:
        register_backend(name, ATTENTION_BACKEND)
    selector._cached_get_attn_backend.cache_clear()
    try:
        yield
    finally:
        if name is not None:
            name.clear_override()
        selector._cached_get_attn_backend.cache_clear()


def add_scheduler_stats(stats: type) -> None:
    """Give vLLM's ``SchedulerStats`` one more field, ``sink_stats``, of that type or None.

    It is a dataclass, which msgspec reads by its fields and annotations when an encoder or decoder
    is made: both processes call this before. vLLM has no field for a plugin's statistics.
    """
    from vllm.v1.metrics.stats import SchedulerStats

    if "sink_stats" in SchedulerStats.__dataclass_fields__:
        return
    # A field made by the dataclass machinery itself, with its type and default in place.
    extra = dataclasses.make_dataclass("_", [("sink_stats", stats | None, None)])
    SchedulerStats.__dataclass_fields__["sink_stats"] = dataclasses.fields(extra)[0]
    SchedulerStats.__annotations__["sink_stats"] = stats | None
    SchedulerStats.sink_stats = None


def wrap(owner: type, name: str, make: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
    """Replace ``owner.name`` by ``make(original)``, once for each ``make``.

    Raises:
        ImportError: vLLM has no such attribute: an unknown version, refused by name.
    """
    original = owner.__dict__.get(name)
    if original is None:
        raise ImportError(
            f"vllm-sink does not know this vLLM: {owner.__module__}.{owner.__name__}.{name} is gone"
        )
    function = original.__func__ if isinstance(original, (staticmethod, classmethod)) else original
    maker = f"{make.__module__}.{make.__qualname__}"
    makers: tuple[str, ...] = getattr(function, "__vllm_sink__", ())
    if maker in makers:
        return
    wrapped = functools.wraps(function)(make(function))
    wrapped.__vllm_sink__ = (*makers, maker)  # type: ignore[attr-defined]
    if isinstance(original, (staticmethod, classmethod)):
        wrapped = type(original)(wrapped)  # type: ignore[assignment]
    setattr(owner, name, wrapped)


def block_table(runner: Any, rows: int) -> Any:
    """The persistent block table of a model runner, int32 [rows, width], all null blocks.

    Args:
        runner: V1 (``v1/worker/gpu_model_runner.py``) or V2 (``v1/worker/gpu/model_runner.py``).
        rows: how many rows of it.
    """
    if hasattr(runner, "block_tables"):
        return runner.block_tables.get_dummy_block_tables(rows)[0]
    return runner.input_batch.block_table[0].get_device_tensor(rows).zero_()


def wrap_v1_positions(raise_positions: Callable[[Any, Any], None]) -> None:
    """Call ``raise_positions(runner, num_scheduled_tokens)`` once the V1 runner has its inputs.

    There the slots of the step are computed and its positions are not used yet.
    """
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner

    def make(prepare_inputs: Callable[..., Any]) -> Callable[..., Any]:
        def prepare(self: Any, scheduler_output: Any, num_scheduled_tokens: Any) -> Any:
            prepared = prepare_inputs(self, scheduler_output, num_scheduled_tokens)
            raise_positions(self, num_scheduled_tokens)
            return prepared

        return prepare

    wrap(GPUModelRunner, "_prepare_inputs", make)
