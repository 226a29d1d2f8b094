"""A replica: ``ray.serve.llm``'s server that reports its load and drains as ``vllm serve`` does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from ray.llm._internal.serve.core.configs.openai_api_models import ErrorInfo, ErrorResponse
from ray.serve._private.replica import Replica
from ray.serve.llm.deployment import LLMServer

from vllm_sink import compat
from vllm_sink.serving.drain import ENDED, ERROR_TYPE, REFUSED, STATUS, Drain, grace
from vllm_sink.serving.drain_middleware import last_event
from vllm_sink.serving.ray.autoscaling import report

if TYPE_CHECKING:
    from vllm_sink.requests.client_request import Caller

#: One for the process: a replica's process has one engine, and ends with it.
DRAIN = Drain()


class StreamServer(LLMServer):
    """Ray's ``LLMServer`` for engines under the policy."""

    async def __init__(self, *args: Any, **kwargs: Any) -> None:  # type: ignore[misc]
        # Ray calls a replica's own code only after all requests have ended, which streams do not.
        compat.wrap(Replica, "perform_graceful_shutdown", draining)
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
        from vllm_sink.requests.client_request import CALLER
        from vllm_sink.serving.request_middleware import from_request

        if DRAIN.begun:
            return shutting_down()
        headers = {} if raw_request_info is None else raw_request_info.headers
        caller = from_request(headers, request)
        CALLER.set(caller)
        answer = await super()._run_request(
            request,
            engine_method=engine_method,
            batch_output_stream=batch_output_stream,
            raw_request_info=raw_request_info,
        )
        return with_reasons(answer, bool(getattr(request, "stream", False)), caller)


def draining(perform: Callable[..., Any]) -> Callable[..., Any]:
    """``Replica.perform_graceful_shutdown`` that starts the streams' grace period first."""

    async def shut_down(self: Any) -> None:
        DRAIN.begin(grace(self._deployment_config.graceful_shutdown_timeout_s))
        await perform(self)

    return shut_down


async def shutting_down() -> AsyncGenerator[Any, None]:
    """The answer to a request that arrives while the replica shuts down: HTTP 503."""
    yield _error(REFUSED)


async def with_reasons(
    answer: AsyncGenerator[Any, None], streamed: bool, caller: Caller | None = None
) -> AsyncGenerator[Any, None]:
    """An answer that ends with an error where the grace period of its replica is over.

    A refused request is answered with the status of its refusal; vLLM's own streamed answer would
    begin with HTTP 200 and have the error in its first event.

    Args:
        answer: the parts of Ray's answer.
        streamed: the client gets them as events.
        caller: of the request; it has the refusal, if there is one.
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
                if not began and caller is not None and caller.refusal is not None:
                    error_info = create_error_response(caller.refusal).error
                    yield _error(error_info.message, HTTPStatus(error_info.code))
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
