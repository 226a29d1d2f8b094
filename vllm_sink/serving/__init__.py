"""The policy in front of the engine: what the HTTP server understands."""

#: How vLLM's ``--middleware`` finds them. Named here, where nothing of vLLM is imported.
DRAIN_MIDDLEWARE = "vllm_sink.serving.drain_middleware.DrainMiddleware"
KEY_MIDDLEWARE = "vllm_sink.tenancy.authentication.KeyMiddleware"
CALLER_MIDDLEWARE = "vllm_sink.serving.request_middleware.CallerMiddleware"
