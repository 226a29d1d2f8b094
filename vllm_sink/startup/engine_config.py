"""From flags to an engine under the policy: wraps ``EngineArgs.create_engine_config``.

The one place before any process starts where both the arguments and vLLM's own reading of the model
are at hand (``vllm/engine/arg_utils.py``). Here the numbers are chosen, what is unsupported is
refused, and vLLM's own settings name the scheduler, the worker and the attention backend.
"""

from __future__ import annotations

import copy
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from vllm.logger import init_logger

from vllm_sink import compat, metrics, policy, segments
from vllm_sink.attention import providers
from vllm_sink.compat import probes
from vllm_sink.config.kv_policy import CONFIG_KEY, KVPolicy
from vllm_sink.errors import PolicyError, UnsupportedError
from vllm_sink.startup import features, models
from vllm_sink.startup.flags import FROM_COMMAND_LINE

logger = init_logger("vllm.sink")

#: Fine enough that a window wastes little, and what vLLM's CPU build asks for.
CPU_BLOCK_SIZE = 32


def with_policy(create_engine_config: Callable[..., Any]) -> Callable[..., Any]:
    """``create_engine_config`` that honours ``additional_config["kv_policy"]``."""

    def create(self: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            kv_policy = _requested(self)
            if kv_policy is None or not kv_policy.active:
                vllm_config = create_engine_config(self, *args, **kwargs)
                if getattr(self, FROM_COMMAND_LINE, False):
                    _leave()  # this process makes no other engine
                return vllm_config
            return _create(self, kv_policy, lambda: create_engine_config(self, *args, **kwargs))
        except (PolicyError, UnsupportedError) as error:
            if getattr(self, FROM_COMMAND_LINE, False):
                raise SystemExit(f"vllm: error: {error}") from None
            raise

    return create


def _leave() -> None:
    """A server without a policy runs vLLM as it is, with no attribute of its replaced."""
    from vllm.engine.arg_utils import EngineArgs

    compat.unwrap_all(EngineArgs)


def _requested(engine_args: Any) -> KVPolicy | None:
    config = engine_args.additional_config
    if not isinstance(config, dict) or CONFIG_KEY not in config:
        return None
    kv_policy = KVPolicy.from_config(config[CONFIG_KEY])
    if not kv_policy.active:
        # What is left is what vLLM would have seen without the flag.
        engine_args.additional_config = {k: v for k, v in config.items() if k != CONFIG_KEY}
    return kv_policy


def read_model(engine_args: Any) -> models.Model:
    """The model's verdict, from its config alone.

    Raises:
        UnsupportedError: with the reason.
    """
    wanted, engine_args.max_model_len = engine_args.max_model_len, None
    try:
        return models.examine(engine_args.create_model_config())
    finally:
        engine_args.max_model_len = wanted


def _create(engine_args: Any, kv_policy: KVPolicy, create: Callable[[], Any]) -> Any:
    from vllm.platforms import current_platform

    if warning := probes.require():
        logger.warning(warning)
    features.refuse_arguments(engine_args)
    model = read_model(engine_args)
    given = copy.copy(engine_args)  # vLLM writes into them while it makes the config
    wanted = engine_args.max_model_len
    limit = None if wanted in (None, -1) else wanted
    kv_policy = replace(models.resolve(kv_policy, model), stream_tokens=limit)
    _refuse_overrides(engine_args)
    engine_args.additional_config = {
        **engine_args.additional_config,
        CONFIG_KEY: kv_policy.to_config(),
    }
    if current_platform.is_cpu() and engine_args.block_size is None:
        engine_args.block_size = CPU_BLOCK_SIZE
    # vLLM's own limit is that of its bookkeeping; the front end is told the stream's
    # (vllm_sink/streaming/front_end_max_len.py).
    engine_args.max_model_len = min(kv_policy.segment, limit or kv_policy.segment)
    try:
        with _long_streams():
            vllm_config = create()
    finally:
        engine_args.max_model_len = wanted
    _require_segment(vllm_config, kv_policy)
    models.refuse_features(vllm_config, given)
    choice = providers.choose(kv_policy.sink_attention, models.traits(vllm_config, model))
    kv_policy = replace(kv_policy, provider=choice.name)
    vllm_config.additional_config[CONFIG_KEY] = kv_policy.to_config()
    _attach(vllm_config)
    require_known_room(vllm_config, kv_policy)
    install_front_end(vllm_config)
    logger.info(
        "KV policy %s for %s, %s: %d sink tokens and a window of %d of the %d positions that the "
        "model has learned; streams may run %s, in segments of %d tokens (--segment-tokens); "
        "attention by %s: %s%s",
        kv_policy.name,
        model.family,
        model.positions,
        kv_policy.sink_tokens,
        kv_policy.window,
        model.native_context,
        "until they are stopped" if limit is None else f"to {limit} tokens (--max-model-len)",
        vllm_config.model_config.max_model_len,
        choice.name,
        choice.why,
        f"; it replaces the model's own sliding window of {model.own_window}"
        if model.own_window
        else "",
    )
    return vllm_config


def _require_segment(vllm_config: Any, kv_policy: KVPolicy) -> None:
    """Refuse a segment in which a stream could not get on."""
    limit = kv_policy.stream_tokens
    if limit is not None and limit <= kv_policy.segment:
        return  # no stream fills it
    block = vllm_config.cache_config.block_size
    least = segments.least_tokens(kv_policy.sink_tokens, kv_policy.window, block)
    if kv_policy.segment < least:
        raise PolicyError(
            "--segment-tokens",
            kv_policy.segment,
            f"{least} or more: {kv_policy.sink_tokens} sink tokens and a window of "
            f"{kv_policy.window} must fit, with three blocks of {block} tokens to spare",
        )


def _refuse_overrides(engine_args: Any) -> None:
    """Refuse settings of the user's that the policy would have to overwrite."""
    if engine_args.worker_cls not in ("auto", *_WORKERS.values()):
        raise features.refusal("--worker-cls", engine_args.worker_cls)
    if engine_args.scheduler_cls not in (None, *_SCHEDULERS.values()):
        raise features.refusal("--scheduler-cls", engine_args.scheduler_cls)
    if getattr(engine_args, "attention_backend", None) is not None:
        raise features.refusal("--attention-backend", engine_args.attention_backend)


_WORKERS = {
    "vllm.v1.worker.cpu_worker.CPUWorker": "vllm_sink.worker.cpu.SinkCPUWorker",
    "vllm.v1.worker.gpu_worker.Worker": "vllm_sink.worker.gpu.SinkGPUWorker",
}
_SCHEDULERS = {
    False: "vllm_sink.engine.scheduler.SinkScheduler",
    True: "vllm_sink.engine.scheduler.SinkAsyncScheduler",
}


def _attach(vllm_config: Any) -> None:
    """Name this project's classes where vLLM asks for a class."""
    from vllm.platforms import current_platform

    parallel, scheduler = vllm_config.parallel_config, vllm_config.scheduler_config
    if parallel.worker_cls not in (*_WORKERS, *_WORKERS.values()):
        raise UnsupportedError(
            f"platform {current_platform.device_name} (worker {parallel.worker_cls}): only vLLM's "
            "CPU and CUDA builds are supported"
        )
    parallel.worker_cls = _WORKERS.get(parallel.worker_cls, parallel.worker_cls)
    scheduler.scheduler_cls = _SCHEDULERS[bool(scheduler.async_scheduling)]
    if not current_platform.is_cpu():
        from vllm.v1.attention.backends.registry import AttentionBackendEnum

        vllm_config.attention_config.backend = AttentionBackendEnum.CUSTOM


def kv_bytes_per_block(vllm_config: Any) -> int:
    """Bytes of one block over all layers of one worker."""
    model, parallel = vllm_config.model_config, vllm_config.parallel_config
    return int(
        model.get_num_layers(parallel)
        * model.get_num_kv_heads(parallel)
        * 2
        * model.get_head_size()
        * vllm_config.cache_config.block_size
        * model.dtype.itemsize
    )


def stream_blocks(vllm_config: Any, kv_policy: KVPolicy, in_flight_tokens: int) -> int:
    """The most blocks that one stream holds with so many tokens in flight."""
    return policy.max_blocks(
        kv_policy.sink_tokens,
        kv_policy.window,
        in_flight_tokens,
        vllm_config.model_config.max_model_len,
        vllm_config.cache_config.block_size,
    )


def known_pool_bytes(vllm_config: Any) -> int | None:
    """Bytes of the KV pool where the user named them; None where vLLM will measure."""
    cache = vllm_config.cache_config
    if cache.num_gpu_blocks_override is not None:
        return int(cache.num_gpu_blocks_override * kv_bytes_per_block(vllm_config))
    return None if cache.kv_cache_memory_bytes is None else int(cache.kv_cache_memory_bytes)


def require_known_room(vllm_config: Any, kv_policy: KVPolicy) -> None:
    """Refuse a window that the pool cannot hold, where the pool's size is known already.

    Raises:
        PolicyError: naming the window and the largest one that fits.
    """
    pool = known_pool_bytes(vllm_config)
    if pool is None:
        return
    size = kv_bytes_per_block(vllm_config)
    in_flight = vllm_config.max_in_flight_tokens
    need = stream_blocks(vllm_config, kv_policy, in_flight) + 1  # vLLM keeps the null block
    if need * size > pool:
        block = vllm_config.cache_config.block_size
        sinks = policy.sink_blocks(kv_policy.sink_tokens, block)
        fits = (pool // size - 2 - sinks) * block - in_flight + 1
        hint = (
            f"1 to {fits}, or a larger KV pool"
            if fits > 0
            else "none in this pool; take a larger one, or a smaller --max-num-batched-tokens"
        )
        raise PolicyError(
            "--window-tokens",
            kv_policy.window,
            f"{hint}; one stream needs {need * size / 2**20:.1f} MiB of KV and the pool has "
            f"{pool / 2**20:.1f} MiB",
        )


def install_front_end(vllm_config: Any) -> None:
    """Check and count requests, from now on in this process; engines without a policy pass through.

    Done where an engine's config is made. Where that is another process than the front end's (Ray
    Serve makes it in a task that has the GPU), the front end calls this before it makes its engine.
    """
    from vllm.entrypoints.generate.beam_search.online import BeamSearchOnlineMixin
    from vllm.entrypoints.openai.chat_completion.serving import OpenAIServingChat
    from vllm.entrypoints.openai.models.serving import OpenAIModelRegistry
    from vllm.entrypoints.serve.tokenize.serving import ServingTokenization
    from vllm.renderers.online_renderer import OnlineRenderer
    from vllm.v1.engine.async_llm import AsyncLLM
    from vllm.v1.engine.detokenizer import IncrementalDetokenizer
    from vllm.v1.engine.input_processor import InputProcessor
    from vllm.v1.engine.llm_engine import LLMEngine
    from vllm.v1.engine.output_processor import OutputProcessor, RequestState

    from vllm_sink.config.admission import AdmissionConfig
    from vllm_sink.config.tenancy import TenancyConfig
    from vllm_sink.metrics.front_end import FRONT_END
    from vllm_sink.requests import checks
    from vllm_sink.serving import core_refusals, drain, system_prompt
    from vllm_sink.streaming import (
        beam_length,
        front_end_max_len,
        output_trimming,
        slow_client_abort,
    )
    from vllm_sink.tenancy import limits
    from vllm_sink.tenancy.keys import keys_of
    from vllm_sink.vllm_fixes import chat_text_leak, detokenizer

    # They say what is wrong with them now.
    tenancy = TenancyConfig.from_config(vllm_config.additional_config)
    if tenancy.keys_file is not None:
        keys_of(tenancy.keys_file)
    admission = AdmissionConfig.from_config(vllm_config.additional_config)
    FRONT_END.most_unsent_bytes = int(admission.max_unsent_mib * 2**20)
    compat.wrap(InputProcessor, "process_inputs", checks.checked)
    compat.wrap(AsyncLLM, "add_request", checks.entered)
    compat.wrap(LLMEngine, "add_request", checks.entered_from_python)
    compat.wrap(OutputProcessor, "add_request", limits.beginning)
    compat.wrap(OutputProcessor, "add_request", core_refusals.remembering)
    compat.wrap(OutputProcessor, "add_request", slow_client_abort.with_streams_marked)
    compat.wrap(OnlineRenderer, "preprocess_chat", system_prompt.with_system_tokens)
    compat.wrap(BeamSearchOnlineMixin, "beam_search", beam_length.within_context)
    compat.wrap(AsyncLLM, "__init__", front_end_max_len.with_stream_length)
    compat.wrap(LLMEngine, "__init__", front_end_max_len.with_stream_length)
    compat.wrap(AsyncLLM, "shutdown", drain.with_drain)
    compat.wrap(RequestState, "make_request_output", output_trimming.with_tail)
    compat.wrap(OutputProcessor, "process_outputs", limits.spending)
    compat.wrap(OutputProcessor, "process_outputs", slow_client_abort.with_readers_only)
    compat.wrap(OutputProcessor, "process_outputs", core_refusals.with_refusals)
    compat.wrap(OpenAIModelRegistry, "show_available_models", front_end_max_len.with_context_named)
    compat.wrap(ServingTokenization, "create_tokenize", front_end_max_len.with_context_named)
    compat.wrap(IncrementalDetokenizer, "from_new_request", detokenizer.with_decode_streams)
    if compat.weight_version_span() is not None:
        compat.wrap(RequestState, "_weight_version_spans", output_trimming.with_true_spans)
    compat.wrap(OpenAIServingChat, "chat_completion_stream_generator", chat_text_leak.with_pieces)
    metrics.install()


@contextmanager
def _long_streams() -> Iterator[None]:
    """Let vLLM take a ``max_model_len`` past the model's context while the config is made.

    vLLM refuses it, or warns of positions that were never learned. Under the policy no token ever
    stands at one: positions end at S + W - 1.
    """
    name = "VLLM_ALLOW_LONG_MAX_MODEL_LEN"
    before = os.environ.get(name)
    loggers = [logging.getLogger("vllm.config.model")]

    def not_the_warning(record: logging.LogRecord) -> bool:
        return "is greater than the derived max_model_len" not in record.getMessage()

    for log in loggers:
        log.addFilter(not_the_warning)
    os.environ[name] = "1"
    try:
        yield
    finally:
        for log in loggers:
            log.removeFilter(not_the_warning)
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
