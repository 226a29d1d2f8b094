"""Names of this project's ASGI middleware, as vLLM's ``--middleware`` takes them."""

DRAIN_MIDDLEWARE = "vllm_sink.serving.drain_middleware.DrainMiddleware"
KEY_MIDDLEWARE = "vllm_sink.tenancy.authentication.KeyMiddleware"
REQUEST_MIDDLEWARE = "vllm_sink.serving.request_middleware.RequestMiddleware"
