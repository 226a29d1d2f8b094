"""What the rest of the package calls where versions of vLLM differ."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
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


#: This package's key in ``SchedulerStats.plugin_stats`` (a vLLM with the patch).
_PLUGIN = "vllm_sink"


def put_stats(scheduler_stats: Any, message: Any) -> None:
    """Send a message with vLLM's statistics."""
    if hasattr(scheduler_stats, "plugin_stats"):
        sent = scheduler_stats.plugin_stats or {}
        scheduler_stats.plugin_stats = {**sent, _PLUGIN: dataclasses.asdict(message)}
    else:
        scheduler_stats.sink_stats = message


def take_stats(scheduler_stats: Any, kind: type) -> Any:
    """The message that came with vLLM's statistics, of type ``kind``; None if there is none."""
    if not hasattr(scheduler_stats, "plugin_stats"):
        return scheduler_stats.sink_stats
    import msgspec

    sent = (scheduler_stats.plugin_stats or {}).get(_PLUGIN)
    return None if sent is None else msgspec.convert(sent, kind)


def block_table(runner: Any, rows: int) -> Any:
    """The persistent block table of a model runner, int32 [rows, width], all null blocks.

    Args:
        runner: V1 (``v1/worker/gpu_model_runner.py``) or V2 (``v1/worker/gpu/model_runner.py``).
        rows: how many rows of it.
    """
    if hasattr(runner, "block_tables"):
        return runner.block_tables.get_dummy_block_tables(rows)[0]
    return runner.input_batch.block_table[0].get_device_tensor(rows).zero_()


def prompt_states(sampler: Any) -> tuple[Any, Any]:
    """The parts of the V2 runner's sampler that depend on prompts.

    Raises:
        ImportError: it no longer has one of them: an unknown version, refused by name.
    """
    from vllm.v1.worker.gpu.sample.logit_bias import LogitBiasState
    from vllm.v1.worker.gpu.sample.penalties import PenaltiesState

    # In 0.29 they are attributes of the sampler; later all processors are in a list.
    parts = [*vars(sampler).values(), *getattr(sampler, "logits_processors", ())]

    def the(kind: type) -> Any:
        for part in parts:
            if isinstance(part, kind):
                return part
        raise ImportError(
            f"vllm-sink does not know this vllm: {type(sampler).__name__} has no {kind.__name__}"
        )

    return the(LogitBiasState), the(PenaltiesState)


def serve_arguments() -> Any:
    """The module with ``make_arg_parser`` and ``FrontendArgs``, of ``vllm serve``."""
    try:
        from vllm.entrypoints.launchers import cli_args
    except ImportError:  # since 0.33
        from vllm.entrypoints.common import cli_args
    return cli_args


@functools.cache
def weight_version_span() -> Any:
    """vLLM's ``WeightVersionSpan``; None before 0.30, whose answers had no spans."""
    try:
        from vllm.outputs import WeightVersionSpan
    except ImportError:
        return None
    return WeightVersionSpan
