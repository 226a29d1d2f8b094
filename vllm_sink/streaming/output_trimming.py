"""What the front end keeps of a streamed answer: its last tokens.

vLLM's ``RequestState`` (``v1/engine/output_processor.py``) holds the whole text, every token and
every log-probability until a request ends, even if the client takes them as they come; and because
it appends to one string, a token costs more the longer the text is. With
``RequestOutputKind.DELTA`` what has been sent is never read again, except as context of a UTF-8
sequence or a stop string.

An answer that is not streamed is kept whole, because it is sent whole.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine.detokenizer import BaseIncrementalDetokenizer, SlowIncrementalDetokenizer

from vllm_sink import compat
from vllm_sink.compat.attached import Attached

#: Tokens, and characters, that are kept: no UTF-8 sequence is longer.
KEEP = 256
#: Tokens after which the rest is dropped: rarely enough to cost nothing.
EVERY = 2048

#: On vLLM's ``RequestState``: how many tokens were dropped.
DROPPED_TOKENS = Attached("sink_dropped_tokens", 0)


def trim_sent_output(
    make_request_output: Callable[..., Any], state: Any, *args: Any, **kwargs: Any
) -> Any:
    """``RequestState.make_request_output``: drops what has been sent."""
    output = make_request_output(*args, **kwargs)
    detokenizer = state.detokenizer
    if (
        state.output_kind == RequestOutputKind.DELTA
        and detokenizer is not None
        and detokenizer.num_output_tokens() >= EVERY
    ):
        drop_sent(state)
    return output


def count_trimmed_in_spans(weight_version_spans: Callable[..., Any], state: Any) -> Any:
    """``RequestState._weight_version_spans`` in indices of the whole answer."""
    dropped = DROPPED_TOKENS.get(state)
    spans = weight_version_spans()
    if not spans or not dropped:
        return spans
    span = compat.weight_version_span()
    return [span(s.version, s.start + dropped, s.end + dropped) for s in spans]


def drop_sent(state: Any) -> None:
    """Drop all but the last ``KEEP`` tokens that were sent, and lower every count by what left."""
    detokenizer = state.detokenizer
    dropped = detokenizer.num_output_tokens() - KEEP
    if state.stream_interval > 1:
        dropped = min(dropped, state.sent_tokens_offset)
    if dropped <= 0:
        return
    first = getattr(detokenizer, "prompt_len", 0)
    del detokenizer.token_ids[first : first + dropped]
    if isinstance(detokenizer, BaseIncrementalDetokenizer):
        detokenizer.min_tokens = max(0, detokenizer.min_tokens - dropped)
        _drop_text(detokenizer)
    if isinstance(detokenizer, SlowIncrementalDetokenizer):
        pieces = max(0, detokenizer.prefix_offset - KEEP)
        del detokenizer.tokens[:pieces]
        detokenizer.prefix_offset -= pieces
        detokenizer.read_offset -= pieces
    processor = state.logprobs_processor
    if processor.logprobs:
        processor.logprobs = processor.logprobs[dropped:]
    state.sent_tokens_offset = max(0, state.sent_tokens_offset - dropped)
    if compat.weight_version_span() is not None:
        starts = state.weight_version_starts
        state.weight_version_starts = [(v, start - dropped) for v, start in starts]
    DROPPED_TOKENS.set(state, DROPPED_TOKENS.get(state) + dropped)


def _drop_text(detokenizer: Any) -> None:
    longest_stop = max((len(s) for s in detokenizer.stop), default=0)
    sent: int = detokenizer._last_output_text_offset
    dropped = max(0, sent - longest_stop - KEEP)
    detokenizer.output_text = detokenizer.output_text[dropped:]
    detokenizer._last_output_text_offset = sent - dropped
