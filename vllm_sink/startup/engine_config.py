"""From flags to an engine under the policy: wraps ``EngineArgs.create_engine_config``.

The one place before any process starts that has both the arguments and vLLM's config of the model
(``vllm/engine/arg_utils.py``)::

    resolve   arguments, model       -> Plan: every number
    build     Plan                   -> VllmConfig, made by vLLM
    attach    VllmConfig, Plan       -> the same, naming this project's classes
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from vllm.logger import init_logger

from vllm_sink.attention.providers import Choice
from vllm_sink.compat import probes
from vllm_sink.compat.install import uninstall
from vllm_sink.config.kv_policy import CONFIG_KEY, KVPolicy
from vllm_sink.errors import PolicyError, UnsupportedError
from vllm_sink.startup.attach import attach, refuse_overrides
from vllm_sink.startup.build import build
from vllm_sink.startup.flags import FROM_COMMAND_LINE
from vllm_sink.startup.front_end import install_front_end
from vllm_sink.startup.resolve import Plan, resolve

logger = init_logger("vllm.sink")


def with_policy(
    create_engine_config: Callable[..., Any], engine_args: Any, *args: Any, **kwargs: Any
) -> Any:
    """``create_engine_config`` that honours ``additional_config["kv_policy"]``.

    Raises:
        PolicyError: a number of the policy is out of range.
        UnsupportedError: the model or another flag does not work with the policy.
        SystemExit: either, where the arguments come from a command line.
    """
    from_command_line = FROM_COMMAND_LINE.get(engine_args)
    try:
        kv_policy = _requested(engine_args)
        if kv_policy is None or not kv_policy.active:
            vllm_config = create_engine_config(*args, **kwargs)
            if from_command_line:
                # A server without a policy runs vLLM as it is, with no attribute of its replaced,
                # and makes no other engine.
                uninstall("plugin")
            return vllm_config
        return _under_policy(engine_args, kv_policy, lambda: create_engine_config(*args, **kwargs))
    except (PolicyError, UnsupportedError) as error:
        if from_command_line:
            raise SystemExit(f"vllm: error: {error}") from None
        raise


def _requested(engine_args: Any) -> KVPolicy | None:
    config = engine_args.additional_config
    if not isinstance(config, dict) or CONFIG_KEY not in config:
        return None
    kv_policy = KVPolicy.from_config(config[CONFIG_KEY])
    if not kv_policy.active:
        # The rest is what vLLM would have without the flag.
        engine_args.additional_config = {k: v for k, v in config.items() if k != CONFIG_KEY}
    return kv_policy


def _under_policy(engine_args: Any, kv_policy: KVPolicy, create: Callable[[], Any]) -> Any:
    if warning := probes.require():
        logger.warning(warning)
    refuse_overrides(engine_args)
    plan = resolve(engine_args, kv_policy)
    original_args = copy.copy(engine_args)  # vLLM changes them while it makes the config
    vllm_config = build(engine_args, plan, create)
    choice = attach(vllm_config, plan, original_args)
    install_front_end(vllm_config)
    _log(plan, choice)
    return vllm_config


def _log(plan: Plan, choice: Choice) -> None:
    logger.info(
        "KV policy %s for %s, %s: %d sink tokens and a window of %d of the %d positions that the "
        "model has learned; streams may run %s, in segments of %d tokens (--segment-tokens); "
        "attention by %s: %s%s",
        plan.kv_policy.name,
        plan.model.family,
        plan.model.positions,
        plan.kv_policy.sink_tokens,
        plan.kv_policy.window,
        plan.model.native_context,
        "until they are stopped"
        if plan.kv_policy.stream_tokens is None
        else f"to {plan.kv_policy.stream_tokens} tokens (--max-model-len)",
        plan.max_model_len,
        choice.name,
        choice.why,
        f"; it replaces the model's own sliding window of {plan.model.own_window}"
        if plan.model.own_window
        else "",
    )
