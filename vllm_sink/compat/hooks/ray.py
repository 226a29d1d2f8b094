"""The hooks in Ray, for ``vllm_sink.serving.ray``."""

from __future__ import annotations

from vllm_sink.compat.hooks.hook import Hook, Installed, reads

_REPLICA_RAY = "ray.serve._private.replica:Replica"

RAY_WRAPS = (
    Installed(
        "wraps",
        f"{_REPLICA_RAY}.perform_graceful_shutdown",
        "a replica's code is not notified of its shutdown before all requests have ended",
        by="vllm_sink.serving.ray.replica:drain_replica",
        places=("replica",),
        until="Ray Serve notifies a replica when its shutdown begins",
    ),
)

#: Methods that subclasses of Ray's classes replace.
RAY_OVERRIDES = (
    Hook(
        "overrides",
        "ray.serve.llm.deployment:LLMServer._run_request",
        "every request to a replica enters here, with its headers",
        ("request", "engine_method", "batch_output_stream", "raw_request_info"),
    ),
    Hook(
        "overrides",
        "ray.serve.llm.deployment:LLMServer._get_default_engine_class",
        "gives an engine whose front end counts and checks streams",
    ),
    Hook(
        "overrides",
        "ray.serve.llm.ingress:OpenAiIngress._get_response",
        "a stream whose replica dies ends with an error event",
    ),
    Hook(
        "overrides",
        "ray.llm._internal.serve.engines.vllm.vllm_engine:VLLMEngine._start_async_llm_engine",
        "the config is not made in the front end's process",
        ("vllm_engine_args", "vllm_engine_config", "placement_group"),
    ),
)

RAY_READS = (
    *reads(_REPLICA_RAY, "how long streams may take to finish", "_deployment_config"),
    *reads(
        "ray.serve._private.config:DeploymentConfig",
        "how long streams may take to finish",
        "graceful_shutdown_timeout_s",
    ),
    *reads(
        "ray.llm._internal.serve.core.protocol:RawRequestInfo",
        "who sent a request",
        "headers",
    ),
    *reads(
        "ray.serve.llm.deployment:LLMServer",
        "what a replica needs of the cluster",
        "get_deployment_options",
    ),
    *reads(
        "ray.serve.llm.ingress:OpenAiIngress",
        "what the ingress needs of the cluster",
        "get_deployment_options",
    ),
    *reads(
        "ray.serve.llm:LLMServingArgs",
        "what is served",
        "llm_configs",
        "ingress_deployment_config",
    ),
    *reads(
        "ray.serve.llm:LLMConfig",
        "a policy, and defaults for what has none",
        "engine_kwargs",
        "deployment_config",
        "model_id",
    ),
    *reads(
        "ray.serve.config:AutoscalingContext",
        "how many replicas the load asks for",
        "aggregated_metrics",
        "running_replicas",
        "target_num_replicas",
        "total_queued_requests",
    ),
)
