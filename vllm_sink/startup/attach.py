"""Third step of start-up: vLLM's config names this project's scheduler, worker and backend."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from vllm_sink import segments
from vllm_sink.attention import providers
from vllm_sink.attention.providers import Choice
from vllm_sink.config.kv_policy import CONFIG_KEY, KVPolicy
from vllm_sink.errors import PolicyError, UnsupportedError
from vllm_sink.startup import features, models
from vllm_sink.startup.pool_size import require_known_room
from vllm_sink.startup.resolve import Plan

_WORKERS = {
    "vllm.v1.worker.cpu_worker.CPUWorker": "vllm_sink.worker.cpu.SinkCPUWorker",
    "vllm.v1.worker.gpu_worker.Worker": "vllm_sink.worker.gpu.SinkGPUWorker",
}
_SCHEDULERS = {
    False: "vllm_sink.engine.scheduler.SinkScheduler",
    True: "vllm_sink.engine.scheduler.SinkAsyncScheduler",
}


def attach(vllm_config: Any, plan: Plan, engine_args: Any) -> Choice:
    """Name the policy's classes where vLLM asks for a class; the attention provider is chosen here.

    Args:
        vllm_config: as vLLM made it.
        plan: of the engine.
        engine_args: what the config was made from; an error names the flags as given.

    Raises:
        PolicyError: a stream has no room in its segment, or in the pool.
        UnsupportedError: naming the flag, its value, the reason and what is allowed.
    """
    _require_segment(vllm_config, plan.kv_policy)
    features.refuse_config(vllm_config, engine_args)
    traits = models.traits(vllm_config, plan.model)
    choice = providers.choose(plan.kv_policy.sink_attention, traits)
    kv_policy = replace(plan.kv_policy, provider=choice.name)
    vllm_config.additional_config[CONFIG_KEY] = kv_policy.to_config()
    _name_classes(vllm_config)
    require_known_room(vllm_config, kv_policy)
    return choice


def refuse_overrides(engine_args: Any) -> None:
    """Refuse settings of the user's that the policy would have to overwrite.

    Raises:
        UnsupportedError: naming the flag and its value.
    """
    if engine_args.worker_cls not in ("auto", *_WORKERS.values()):
        raise features.refusal("--worker-cls", engine_args.worker_cls)
    if engine_args.scheduler_cls not in (None, *_SCHEDULERS.values()):
        raise features.refusal("--scheduler-cls", engine_args.scheduler_cls)
    if getattr(engine_args, "attention_backend", None) is not None:
        raise features.refusal("--attention-backend", engine_args.attention_backend)


def _require_segment(vllm_config: Any, kv_policy: KVPolicy) -> None:
    """Refuse a segment in which a stream cannot proceed."""
    limit = kv_policy.stream_tokens
    if limit is not None and limit <= kv_policy.segment:
        return  # no stream fills it
    block = vllm_config.cache_config.block_size
    minimum = segments.min_tokens(kv_policy.sink_tokens, kv_policy.window, block)
    if kv_policy.segment < minimum:
        raise PolicyError(
            "--segment-tokens",
            kv_policy.segment,
            f"{minimum} or more: {kv_policy.sink_tokens} sink tokens and a window of "
            f"{kv_policy.window} must fit, with three blocks of {block} tokens to spare",
        )


def _name_classes(vllm_config: Any) -> None:
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
