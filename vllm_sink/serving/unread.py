"""A client that is connected and does not read: what waits for it is bounded.

vLLM merges what a client has not taken yet into one output (``RequestOutputCollector``,
``v1/engine/output_processor.py``), text, tokens and log-probabilities, for as long as the request
lives. An ordinary request ends before that matters; a stream does not, and its engine would work
for nobody. Past ``UNREAD`` tokens the stream is aborted, as if its client had left: it is told all
that was waiting, and ``"finish_reason": "abort"``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from vllm.logger import init_logger

logger = init_logger("vllm.sink")

#: Tokens that may wait for one client: about twenty minutes at fifty tokens a second.
UNREAD = 65_536


def with_readers_only(process_outputs: Callable[..., Any]) -> Callable[..., Any]:
    """``OutputProcessor.process_outputs`` that lets go of streams which nobody reads."""

    def process(self: Any, engine_core_outputs: Any, *args: Any, **kwargs: Any) -> Any:
        processed = process_outputs(self, engine_core_outputs, *args, **kwargs)
        for output in engine_core_outputs:
            state = self.request_states.get(output.request_id)
            if state is None or state.queue is None or waiting(state.queue) <= UNREAD:
                continue
            logger.warning(
                "Request %s is aborted: its client is connected and has left more than %d tokens "
                "unread.",
                state.external_req_id,
                UNREAD,
            )
            processed.reqs_to_abort.extend(self.abort_requests([output.request_id], internal=True))
        return processed

    return process


def waiting(queue: Any) -> int:
    """Tokens in a ``RequestOutputCollector`` that are yet to be taken.

    An answer in one piece, or one that is told anew as a whole each time, does not wait.
    """
    if not queue.aggregate:
        return 0
    completions = getattr(queue.output, "outputs", ())
    return sum(len(completion.token_ids) for completion in completions)
