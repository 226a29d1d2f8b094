"""Output that waits in memory for its client is bounded in bytes, and exported as a metric.

vLLM merges what a client has not taken yet into one output (``RequestOutputCollector``,
``v1/engine/output_processor.py``): text, tokens and log-probabilities, for as long as the request
lives; and it keeps all of an answer that is not streamed until the end. An ordinary request ends
before that matters. A stream does not: past ``--sink-max-unsent-mib`` it is ended, as if its client
had left; the client gets all that was waiting, and ``"finish_reason": "abort"``.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

from vllm.logger import init_logger

from vllm_sink.compat.attached import Attached
from vllm_sink.metrics.front_end import FRONT_END
from vllm_sink.requests.core_request import SinkRequest

logger = init_logger("vllm.sink")

#: Bytes of a token in a list, of the alternatives at one token, and of each of them
#: (``vllm.logprobs.Logprob`` in a dict); as measured on CPython 3.11.
TOKEN, POSITION, LOGPROB = 36, 230, 210

#: Seconds between two sums over all requests.
BETWEEN = 1.0

#: On vLLM's ``RequestState``: whether the answer is a stream's.
_STREAM = Attached("sink_stream", False)


def mark_streams(
    add_request: Callable[..., None], processor: Any, request: Any, *args: Any, **kwargs: Any
) -> None:
    """``OutputProcessor.add_request``: marks answers that do not end by themselves."""
    add_request(request, *args, **kwargs)
    state = processor.request_states.get(request.request_id)
    if state is not None and isinstance(request, SinkRequest) and request.stream:
        _STREAM.set(state, True)


def abort_slow_clients(
    process_outputs: Callable[..., Any],
    processor: Any,
    engine_core_outputs: Any,
    *args: Any,
    **kwargs: Any,
) -> Any:
    """``OutputProcessor.process_outputs``: ends streams with too much unsent output."""
    processed = process_outputs(engine_core_outputs, *args, **kwargs)
    for output in engine_core_outputs:
        state = processor.request_states.get(output.request_id)
        if state is None or state.queue is None or not _STREAM.get(state):
            continue
        if (size := held(state)) <= FRONT_END.most_unsent_bytes:
            continue
        logger.warning(
            "Request %s is ended: %d bytes of its answer wait in memory for its client "
            "(--sink-max-unsent-mib %g), which does not read, or does not stream the answer",
            state.external_req_id,
            size,
            FRONT_END.most_unsent_bytes / 2**20,
        )
        FRONT_END.ended_unsent += 1
        aborted = processor.abort_requests([output.request_id], internal=True)
        processed.reqs_to_abort.extend(aborted)
    now = time.monotonic()
    if now >= FRONT_END.summed + BETWEEN or not processor.request_states:
        FRONT_END.summed = now
        FRONT_END.unsent_bytes = sum(map(held, processor.request_states.values()))
    return processed


def held(state: Any) -> int:
    """Bytes kept of an answer, estimated: what its client has not taken, and what vLLM keeps.

    Only the end of a streamed answer is kept (``output_trimming.py``).
    """
    size = 0
    queue, detokenizer = state.queue, state.detokenizer
    if queue is not None and queue.aggregate:
        for completion in getattr(queue.output, "outputs", ()):
            size += _size(len(completion.token_ids), completion.text, completion.logprobs)
    if detokenizer is not None:
        text = getattr(detokenizer, "output_text", "")
        size += _size(detokenizer.num_output_tokens(), text, state.logprobs_processor.logprobs)
    return size


def _size(tokens: int, text: str, logprobs: Any) -> int:
    size = TOKEN * tokens + sys.getsizeof(text)
    if logprobs:
        size += len(logprobs) * (POSITION + LOGPROB * len(logprobs[-1] or ()))
    return size
