"""A replica: ``ray.serve.llm``'s server that reports its load and drains as ``vllm serve`` does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from ray.llm._internal.serve.core.configs.openai_api_models import ErrorInfo, ErrorResponse
from ray.serve.llm.deployment import LLMServer

from vllm_sink.compat.install import install
from vllm_sink.serving.drain import ENDED, ERROR_TYPE, REFUSED, STATUS, Drain, grace
from vllm_sink.serving.drain_middleware import last_event
from vllm_sink.serving.ray.autoscaling import report

if TYPE_CHECKING:
    from vllm_sink.client_request import ClientRequest

#: One for the process: a replica's process has one engine, and ends with it.
DRAIN = Drain()


class StreamServer(LLMServer):
    """Ray's ``LLMServer`` for engines under the policy."""

    async def __init__(self, *args: Any, **kwargs: Any) -> None:  # type: ignore[misc]
        # Ray tells a replica's own code nothing of its end before all requests have ended.
        install("replica")
        await super().__init__(*args, **kwargs)

    def _get_default_engine_class(self) -> Any:
        from vllm_sink.serving.ray.engine import StreamEngine  # imports vLLM

        return StreamEngine

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """The metrics that the controller scales by; Ray Serve calls this."""
        from vllm_sink.metrics.export import LAST

        return report(next(iter(LAST.values()), None))

    async def _run_request(
        self,
        request: Any,
        *,
        engine_method: str,
        batch_output_stream: bool = False,
        raw_request_info: Any = None,
    ) -> AsyncGenerator[Any, None]:
        from vllm_sink.client_request import CLIENT_REQUEST
        from vllm_sink.serving.request_middleware import from_request

        if DRAIN.begun:
            return shutting_down()
        headers = {} if raw_request_info is None else raw_request_info.headers
        client = from_request(headers, request)
        CLIENT_REQUEST.set(client)
        answer = await super()._run_request(
            request,
            engine_method=engine_method,
            batch_output_stream=batch_output_stream,
            raw_request_info=raw_request_info,
        )
        return with_reasons(answer, bool(getattr(request, "stream", False)), client)


async def drain_replica(perform: Callable[..., Any], replica: Any) -> None:
    """``Replica.perform_graceful_shutdown`` that lets the streams know how long they have."""
    DRAIN.begin(grace(replica._deployment_config.graceful_shutdown_timeout_s))
    await perform()


async def shutting_down() -> AsyncGenerator[Any, None]:
    """The answer to a request that arrives while the replica shuts down: HTTP 503."""
    yield _error(REFUSED)


async def with_reasons(
    answer: AsyncGenerator[Any, None], streamed: bool, client: ClientRequest | None = None
) -> AsyncGenerator[Any, None]:
    """An answer that ends with an error where the grace period of its replica is over.

    What the checks refuse is answered with its status; a streamed answer of vLLM's would begin and
    have the error in its first event.
    """
    from vllm.entrypoints.serve.exception_handling.error_response import create_error_response
    from vllm.exceptions import GracefulHTTPError

    began = False
    with DRAIN.live() as live:
        expiry = asyncio.ensure_future(live.expired.wait())
        part: asyncio.Future[Any] | None = None
        try:
            while True:
                part = asyncio.ensure_future(anext(answer))
                await asyncio.wait({part, expiry}, return_when=asyncio.FIRST_COMPLETED)
                if not part.done():
                    yield [last_event()] if streamed and began else _error(ENDED)
                    return
                result = part.result()
                if not began and client is not None and client.refusal is not None:
                    told = create_error_response(client.refusal).error
                    yield _error(told.message, HTTPStatus(told.code))
                    return
                yield result
                began = True
        except StopAsyncIteration:
            return
        except GracefulHTTPError as error:  # a refusal with a status of its own: a tenant's limit
            yield _error(error.message, HTTPStatus(error.http_status))
        finally:
            expiry.cancel()
            # A client that leaves ends this generator, not the task that waits for a part; and a
            # generator that is being waited for cannot be closed.
            if part is not None and not part.done():
                part.cancel()
                await asyncio.gather(part, return_exceptions=True)
            await answer.aclose()


def _error(message: str, status: HTTPStatus | None = None) -> ErrorResponse:
    kind = ERROR_TYPE if status is None else status.phrase
    code = STATUS if status is None else status.value
    return ErrorResponse(error=ErrorInfo(message=message, type=kind, code=code))
