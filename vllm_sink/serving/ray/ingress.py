"""The HTTP ingress: Ray's own for OpenAI's API, with an API key and an error for a lost replica."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator
from typing import Any

from ray.exceptions import RayActorError
from ray.llm._internal.serve.core.configs.openai_api_models import OpenAIHTTPException
from ray.llm._internal.serve.core.ingress.ingress import init
from ray.serve.llm import LLMConfig
from ray.serve.llm.ingress import OpenAiIngress, make_fastapi_ingress

from vllm_sink.config.tenancy import TenancyConfig
from vllm_sink.errors import PolicyError
from vllm_sink.serving.drain import ERROR_TYPE, STATUS
from vllm_sink.serving.drain_middleware import last_event

#: The environment variable that vLLM reads its API key from; a Secret sets it.
KEY_VARIABLE = "VLLM_API_KEY"

#: The error that a client gets whose replica died.
REPLICA_LOST = (
    "the replica that held this stream is gone: send the conversation again, with the same "
    "x-session-id, to go on where it stopped"
)


class StreamIngress(OpenAiIngress):
    """Ray's ingress; a stream whose replica dies ends with an error event, or with HTTP 503."""

    async def _get_response(self, **kwargs: Any) -> AsyncGenerator[Any, None]:
        began = False
        try:
            async for part in super()._get_response(**kwargs):
                yield part
                began = True
        except RayActorError:
            if not began:
                raise OpenAIHTTPException(STATUS, REPLICA_LOST, ERROR_TYPE) from None
            yield [last_event(REPLICA_LOST)]


class KeyMiddleware:
    """ASGI middleware: vLLM's own check of the API key, if the environment has one.

    The key is read in the process that answers, so that no message of Ray's contains it.
    """

    def __init__(self, app: Any) -> None:
        from vllm.entrypoints.serve.middleware.authenticate import AuthenticationMiddleware

        key = os.environ.get(KEY_VARIABLE)
        self.app = AuthenticationMiddleware(app, [key]) if key else app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await self.app(scope, receive, send)


def make_ingress() -> Any:
    """The class of the ingress deployment, with its FastAPI app."""
    app = init()
    app.add_middleware(KeyMiddleware)
    return make_fastapi_ingress(StreamIngress, app=app)


def require_key(configs: list[LLMConfig]) -> None:
    """Refuse to serve without a key where one is required, or with two kinds of keys.

    Raises:
        PolicyError: ``--sink-require-api-key`` without a key; ``--sink-tenant-keys`` with one.
    """
    for config in configs:
        tenancy = TenancyConfig.from_config(config.engine_kwargs.get("additional_config"))
        if tenancy.keys_file is not None:
            # Each replica asks for a tenant's key.
            if os.environ.get(KEY_VARIABLE):
                allowed = f"only without {KEY_VARIABLE}, which Ray's ingress would want as well"
                raise PolicyError("--sink-tenant-keys", tenancy.keys_file, allowed)
            continue
        if tenancy.require_api_key and not os.environ.get(KEY_VARIABLE):
            raise PolicyError(
                "--sink-require-api-key",
                True,
                f"only with a key in {KEY_VARIABLE}; there is none in Ray's environment",
            )
