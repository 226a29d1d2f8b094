"""Builds the application from ``ray.serve.llm``'s parts, once the cluster has room for it."""

from __future__ import annotations

import logging
import time
from typing import Any

import ray
from ray import serve
from ray.llm._internal.serve.core.configs.openai_api_models import to_model_metadata
from ray.serve import Application
from ray.serve.llm import LLMConfig, LLMServingArgs, build_llm_deployment

from vllm_sink.config.kv_policy import CONFIG_KEY, KVPolicy
from vllm_sink.errors import PolicyError
from vllm_sink.serving.ray.ingress import StreamIngress, make_ingress, require_key
from vllm_sink.serving.ray.replica import StreamServer

logger = logging.getLogger(__name__)

#: Ray's own router: a session stays with its replica while that is there. The router's fallback
#: would take another one where the right one is slow to report its queue, and lose the session's
#: cache.
ROUTER = {
    "request_router_class": "ray.serve.experimental.consistent_hash_router.ConsistentHashRouter",
    "request_router_kwargs": {"num_fallback_replicas": 0},
}

#: The import path, as Ray wants it, of the policy in :mod:`vllm_sink.serving.ray.autoscaling`.
AUTOSCALING = "vllm_sink.serving.ray.autoscaling:StreamLoad"

#: Seconds that streams have to finish when their replica shuts down; Ray's default is 20.
GRACE_SECONDS = 300.0

#: Seconds between two health checks of a replica; Ray's default is 10.
HEALTH_CHECK_SECONDS = 1.0


def build(serving_args: dict[str, Any], wait_for_resources_s: float) -> Application:
    """See :func:`vllm_sink.serving.ray.build`."""
    args = LLMServingArgs.model_validate(serving_args)
    configs: list[LLMConfig] = args.llm_configs
    for config in configs:
        _check_policy(config)
        _set_defaults(config)
    require_key(configs)
    require_resources(configs, wait_for_resources_s)
    ingress = {
        **StreamIngress.get_deployment_options(configs),
        # Every stream passes through the ingress: it needs the longest grace period.
        "graceful_shutdown_timeout_s": max(
            c.deployment_config["graceful_shutdown_timeout_s"] for c in configs
        ),
        **args.ingress_deployment_config,
    }
    if "num_replicas" in args.ingress_deployment_config:
        ingress.pop("autoscaling_config", None)
    return serve.deployment(make_ingress(), **ingress).bind(
        llm_deployments={
            c.model_id: build_llm_deployment(c, deployment_cls=StreamServer) for c in configs
        },
        model_cards={c.model_id: to_model_metadata(c.model_id, c) for c in configs},
    )


def _check_policy(config: LLMConfig) -> None:
    """Refuse a config without a policy, or with a wrong one, before any replica starts.

    Raises:
        PolicyError: naming the field.
    """
    additional_config = config.engine_kwargs.get("additional_config") or {}
    if (
        CONFIG_KEY not in additional_config
        or not KVPolicy.from_config(additional_config[CONFIG_KEY]).active
    ):
        raise PolicyError(
            "additional_config",
            additional_config,
            f'one with "{CONFIG_KEY}", such as {{"{CONFIG_KEY}": {{"name": "sink"}}}}; '
            "for vLLM unchanged there is ray.serve.llm:build_openai_app",
        )


def _set_defaults(config: LLMConfig) -> None:
    """Sticky sessions, scaling by streams, a grace period; what the user set stays."""
    deployment = config.deployment_config
    deployment.setdefault("request_router_config", ROUTER)
    deployment.setdefault("graceful_shutdown_timeout_s", GRACE_SECONDS)
    deployment.setdefault("graceful_shutdown_wait_loop_s", 0.5)
    # Sessions of a replica that died wait until its next health check fails.
    deployment.setdefault("health_check_period_s", HEALTH_CHECK_SECONDS)
    scaling = deployment.get("autoscaling_config")
    if isinstance(scaling, dict):
        scaling["policy"] = {"policy_function": AUTOSCALING, **scaling.get("policy", {})}


def minimum_resources(configs: list[LLMConfig]) -> dict[str, float]:
    """Resources of all replicas that must be there, and one CPU for the ingress, by Ray's names."""
    needed: dict[str, float] = {"CPU": 1.0}
    for config in configs:
        options = StreamServer.get_deployment_options(config)
        for bundle in options.get("placement_group_bundles", ()):
            for name, amount in bundle.items():
                needed[name] = needed.get(name, 0.0) + amount * _minimum_replicas(config)
    return needed


def _minimum_replicas(config: LLMConfig) -> int:
    deployment = config.deployment_config
    if "num_replicas" in deployment:
        return int(deployment["num_replicas"])
    scaling = deployment.get("autoscaling_config") or {}
    return int(scaling.get("min_replicas", 1))


def require_resources(configs: list[LLMConfig], seconds: float) -> None:
    """Wait until the cluster has room for the replicas; its nodes may join one by one.

    Ray Serve itself would wait without end, and report it in its log alone.

    Raises:
        PolicyError: it has none after ``seconds``.
    """
    needed = minimum_resources(configs)
    warned = False
    deadline = time.monotonic() + seconds
    while True:
        available = ray.cluster_resources()
        too_little = {n: v for n, v in needed.items() if v > available.get(n, 0.0)}
        if not too_little:
            return
        missing = ", ".join(
            f"{v:g} {n} of {available.get(n, 0.0):g}" for n, v in too_little.items()
        )
        if time.monotonic() > deadline:
            replicas = sum(_minimum_replicas(c) for c in configs)
            raise PolicyError(
                "min_replicas",
                replicas,
                f"fewer, or a larger cluster: they and the ingress need {missing} that Ray has",
            )
        if not warned:
            warned = True
            logger.warning(
                "Replicas and ingress need %s that Ray has: waiting up to %g s for more nodes "
                "(wait_for_resources_s)",
                missing,
                seconds,
            )
        time.sleep(min(1.0, max(0.05, seconds)))
