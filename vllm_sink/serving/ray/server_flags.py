"""What becomes of ``vllm serve``'s own flags behind Ray: read, Ray's own, or refused."""

from __future__ import annotations

# The flags of vLLM's server, behind Ray. Ray runs vLLM's engine, init_app_state and the serving
# classes for its own endpoints (ray/llm/_internal/serve/core/ingress/ingress.py); the HTTP server,
# the app and its middleware are Ray's. So each field of vLLM's FrontendArgs is one of three.

#: Read by init_app_state or by what it makes: as with ``vllm serve``.
READ = (
    "chat_template",
    "chat_template_content_format",
    "cohere_format",
    "default_chat_template_kwargs",
    "enable_auto_tool_choice",
    "enable_force_include_usage",
    "enable_log_deltas",
    "enable_log_outputs",
    "enable_per_request_metrics",
    "enable_prompt_tokens_details",
    "exclude_tools_when_tool_choice_none",
    "fingerprint_mode",
    "fingerprint_value",
    "max_log_len",
    "response_role",
    "return_tokens_as_token_ids",
    "tool_call_parser",
    "tool_strict_level",
    "trust_request_chat_template",
    "trust_request_mm_kwargs",
)

#: Left out, so that one file serves ``vllm serve`` too. By what has their meaning behind Ray.
RAYS_OWN = {
    "host": "http_options of Ray Serve",
    "port": "http_options of Ray Serve",
    "uds": "http_options of Ray Serve",
    "api_server_count": "min_replicas and max_replicas: a replica has one front end",
    "shutdown_timeout": "graceful_shutdown_timeout_s, which is set to it",
}

_IN_FRONT = "Ray's proxy takes the requests; do it in a proxy in front of Ray"
_TLS = "Ray's proxy takes the connections; set ssl_* in Ray Serve's http_options"
_NO_TLS = "Ray's proxy takes the connections and has no such option; end TLS in front of Ray"
_CORS = "Ray's ingress answers every origin; restrict them in a proxy in front of Ray"
_LOG = "Ray's proxy takes the requests; set logging_config of Ray Serve"
_REPLICAS = "the replicas and their health are Ray's; set min_replicas and max_replicas"
_DOCS = "the ingress is Ray's, with Ray's /docs; hide them in a proxy in front of Ray"


def _no_endpoint(path: str) -> str:
    return f"Ray's ingress has no {path}; remove the flag, or use vllm serve"


#: Refused where set, because they would be ignored. By the reason, and what to do instead.
REFUSED = {
    "allow_credentials": _CORS,
    "allowed_headers": _CORS,
    "allowed_methods": _CORS,
    "allowed_origins": _CORS,
    "anthropic_disabled_thinking_effort": _no_endpoint("/v1/messages"),
    "api_key": "a key in a file is in Ray's messages; set VLLM_API_KEY, from a secret",
    "cohere_is_reasoning_model": _no_endpoint("/cohere/v2/chat"),
    "data_parallel_supervisor_port": _REPLICAS,
    "disable_access_log_for_endpoints": _LOG,
    "disable_fastapi_docs": _DOCS,
    "disable_uvicorn_access_log": _LOG,
    "dp_supervisor_probe_failure_threshold": _REPLICAS,
    "dp_supervisor_probe_interval_s": _REPLICAS,
    "dp_supervisor_probe_timeout_s": _REPLICAS,
    "enable_flash_late_interaction": "only pooling models have scores, and no policy takes them; "
    "remove the flag",
    "enable_offline_docs": _DOCS,
    "enable_request_id_headers": "Ray's proxy sends X-Request-ID always; remove the flag",
    "enable_scale_out": _no_endpoint("/inference/v1/generate, /render or /derender"),
    "enable_server_load_tracking": _no_endpoint("/load"),
    "enable_ssl_refresh": _NO_TLS,
    "enable_tokenizer_info_endpoint": _no_endpoint("/tokenizer_info"),
    "grpc": "Ray's proxy speaks HTTP with the application; remove the flag, or use vllm serve",
    "grpc_port": "it needs vLLM's Rust front end; remove the flag, or use vllm serve",
    "h11_max_header_count": _IN_FRONT,
    "h11_max_incomplete_event_size": _IN_FRONT,
    "headless": "each replica is whole; remove the flag, and set min_replicas",
    "log_error_stack": "Ray's ingress answers errors and logs their stack; remove the flag",
    "lora_modules": "Ray's ingress knows the models of its LLMConfigs alone; give one with a "
    "lora_config to vllm_sink.serving.ray.build",
    "middleware": _IN_FRONT,
    "root_path": "the paths are Ray's; set route_prefix of the application",
    "sse_keep_alive_interval": "a replica sends tokens alone; let the read timeout of proxies in "
    "front of Ray be longer than a stream may wait",
    "ssl_ca_certs": _TLS,
    "ssl_cert_reqs": _NO_TLS,
    "ssl_certfile": _TLS,
    "ssl_ciphers": _NO_TLS,
    "ssl_keyfile": _TLS,
    "tokens_only": _no_endpoint("/inference/v1/generate"),
    "tool_parser_plugin": "vllm serve's launcher imports it, and there is none; register the "
    "parser in an entry point of vllm.general_plugins",
    "tool_server": _no_endpoint("/v1/responses"),
    "uvicorn_log_level": _LOG,
}
