"""What the rest of the package calls where versions of vLLM differ, or have to be wrapped.

A vLLM with the patches of ``patches/`` has an extension point wherever this package would replace
an attribute: it is used instead, and nothing of vLLM's is replaced.
"""

from __future__ import annotations

import dataclasses
import functools
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FunctionType
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


def add_scheduler_stats(stats: type) -> None:
    """Make room in vLLM's ``SchedulerStats`` for a message of that type.

    It is a dataclass, which msgspec reads by its fields and annotations when an encoder or decoder
    is made: both processes call this before. One more field is added where vLLM has none for
    plugins.
    """
    from vllm.v1.metrics.stats import SchedulerStats

    fields = SchedulerStats.__dataclass_fields__
    WRAPPED.add(f"{SchedulerStats.__module__}:{SchedulerStats.__qualname__}")
    if "plugin_stats" in fields or "sink_stats" in fields:
        return
    # A field made by the dataclass machinery itself, with its type and default in place.
    extra = dataclasses.make_dataclass("_", [("sink_stats", stats | None, None)])
    fields["sink_stats"] = dataclasses.fields(extra)[0]
    SchedulerStats.__annotations__["sink_stats"] = stats | None
    SchedulerStats.sink_stats = None


def put_stats(scheduler_stats: Any, message: Any) -> None:
    """Send a message with vLLM's statistics."""
    if hasattr(scheduler_stats, "plugin_stats"):
        told = scheduler_stats.plugin_stats or {}
        scheduler_stats.plugin_stats = {**told, _PLUGIN: dataclasses.asdict(message)}
    else:
        scheduler_stats.sink_stats = message


def take_stats(scheduler_stats: Any, kind: type) -> Any:
    """The message that came with vLLM's statistics, of type ``kind``; None for none."""
    if not hasattr(scheduler_stats, "plugin_stats"):
        return scheduler_stats.sink_stats
    import msgspec

    told = (scheduler_stats.plugin_stats or {}).get(_PLUGIN)
    return None if told is None else msgspec.convert(told, kind)


_Make = Callable[[Callable[..., Any]], Callable[..., Any]]


#: The attribute of a wrapped function that names who wrapped it.
_MAKERS = "__vllm_sink__"

#: What this process has replaced or extended, as ``vllm_sink.compat.hooks`` names it.
WRAPPED: set[str] = set()


def _gone(owner: type, name: str) -> ImportError:
    module = owner.__module__
    return ImportError(
        f"vllm-sink does not know this {module.partition('.')[0]}: "
        f"{module}.{owner.__name__}.{name} is gone"
    )


def _replace(owner: type, name: str, original: Any, function: Any) -> None:
    """Put ``function`` where ``original`` is, static or of the class where that is."""
    static = isinstance(original, (staticmethod, classmethod))
    setattr(owner, name, type(original)(function) if static else function)


def wrap(owner: type, name: str, make: _Make) -> None:
    """Replace ``owner.name`` by ``make(original)``, once for each ``make``.

    Raises:
        ImportError: vLLM has no such attribute: an unknown version, refused by name.
    """
    original: Any = owner.__dict__.get(name)
    if original is None:
        raise _gone(owner, name)
    WRAPPED.add(f"{owner.__module__}:{owner.__qualname__}.{name}")
    function = getattr(original, "__func__", original)
    maker = f"{make.__module__}.{make.__qualname__}"
    makers: tuple[str, ...] = getattr(function, _MAKERS, ())
    if maker in makers:
        return

    def like_it(inner: Callable[..., Any]) -> Callable[..., Any]:
        return functools.wraps(inner)(make(inner))

    if hasattr(function, "extend"):
        function.extend(like_it)
        setattr(function, _MAKERS, (*makers, maker))
        return
    wrapped = like_it(function)
    setattr(wrapped, _MAKERS, (*makers, maker))
    _replace(owner, name, original, wrapped)


def set_core_request(request_type: type) -> None:
    """Let the engine core of this process decode requests as this subclass of vLLM's.

    Raises:
        ImportError: the engine core does not name the type: an unknown version.
    """
    from vllm.v1.engine import core

    if hasattr(core.EngineCoreProc, "request_type"):
        core.EngineCoreProc.request_type = request_type
    elif hasattr(core, "EngineCoreRequest"):
        core.EngineCoreRequest = request_type
    else:
        raise ImportError("vllm-sink does not know this vllm: core.EngineCoreRequest is gone")
    WRAPPED.add("vllm.v1.engine.core:EngineCoreRequest")


def unwrap_all(owner: type) -> None:
    """Put back whatever of a class's own was there before the first ``wrap``."""
    for name, original in list(vars(owner).items()):
        bound = isinstance(original, (staticmethod, classmethod))
        function: Any = original.__func__ if bound else original
        if not isinstance(function, FunctionType) or not getattr(function, _MAKERS, ()):
            continue
        if hasattr(function, "extend"):
            function.extended = function.__wrapped__  # type: ignore[attr-defined]
            setattr(function, _MAKERS, ())
            continue
        while getattr(function, _MAKERS, ()):
            function = function.__wrapped__  # type: ignore[attr-defined]
        _replace(owner, name, original, function)


def wrap_method_of(thing: Any, name: str, make: _Make) -> None:
    """Replace a bound method of one object, an engine's own, by ``make(method)``.

    Raises:
        ImportError: there is no such method.
    """
    if not hasattr(thing, name):
        raise _gone(type(thing), name)
    method = getattr(thing, name)
    owner = next((c for c in type(thing).__mro__ if name in vars(c)), type(thing))
    WRAPPED.add(f"{owner.__module__}:{owner.__qualname__}.{name}")
    if not hasattr(method, "extend"):
        setattr(thing, name, make(method))
        return
    # An extension is the class's; this one is for one object, and does not keep it alive.
    its = weakref.ref(thing)

    def only_for_it(original: Callable[..., Any]) -> Callable[..., Any]:
        def call(self: Any, *args: Any, **kwargs: Any) -> Any:
            if self is its():
                return make(functools.partial(original, self))(*args, **kwargs)
            return original(self, *args, **kwargs)

        return call

    method.extend(only_for_it)


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
    """What the V2 runner's sampler knows of prompts: its ``LogitBiasState`` and ``PenaltiesState``.

    Raises:
        ImportError: it has one of them no more: an unknown version, refused by name.
    """
    from vllm.v1.worker.gpu.sample.logit_bias import LogitBiasState
    from vllm.v1.worker.gpu.sample.penalties import PenaltiesState

    # In 0.29 they are attributes of their own; later all processors are in a list.
    every = [*vars(sampler).values(), *getattr(sampler, "logits_processors", ())]

    def the(kind: type) -> Any:
        for one in every:
            if isinstance(one, kind):
                return one
        raise _gone(type(sampler), kind.__name__)

    return the(LogitBiasState), the(PenaltiesState)


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
