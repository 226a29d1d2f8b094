"""What the front end keeps of a streamed answer: its tail.

vLLM's ``RequestState`` (``v1/engine/output_processor.py``) holds the whole text, every token and
every log-probability until a request ends, also when the client takes them as they come; and since
it appends to one string, a token costs more the longer the text is. With
``RequestOutputKind.DELTA`` what has been sent is never read again, but for the context of a UTF-8
sequence and of a stop string.

An answer that is wanted in one piece is held in one piece: that is what was asked for.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine.detokenizer import BaseIncrementalDetokenizer, SlowIncrementalDetokenizer

from vllm_sink import compat

#: Tokens, and characters, that are kept: no UTF-8 sequence is longer.
KEEP = 256
#: Tokens after which the rest is dropped: seldom enough to cost nothing.
EVERY = 2048

#: The attribute of ``RequestState`` that counts the tokens that were dropped.
GONE = "sink_gone"


def with_tail(make_request_output: Callable[..., Any]) -> Callable[..., Any]:
    """``RequestState.make_request_output`` that drops what has been sent."""

    def make(self: Any, *args: Any, **kwargs: Any) -> Any:
        output = make_request_output(self, *args, **kwargs)
        detokenizer = self.detokenizer
        if (
            self.output_kind == RequestOutputKind.DELTA
            and detokenizer is not None
            and detokenizer.num_output_tokens() >= EVERY
        ):
            drop_sent(self)
        return output

    return make


def with_true_spans(weight_version_spans: Callable[..., Any]) -> Callable[..., Any]:
    """``RequestState._weight_version_spans`` in indices of the whole answer."""

    def spans(self: Any) -> Any:
        gone = getattr(self, GONE, 0)
        told = weight_version_spans(self)
        if not told or not gone:
            return told
        span = compat.weight_version_span()
        return [span(s.version, s.start + gone, s.end + gone) for s in told]

    return spans


def drop_sent(state: Any) -> None:
    """Drop all but the last ``KEEP`` tokens that were sent, and lower every count by what left."""
    detokenizer = state.detokenizer
    gone = detokenizer.num_output_tokens() - KEEP
    if state.stream_interval > 1:
        gone = min(gone, state.sent_tokens_offset)
    if gone <= 0:
        return
    first = getattr(detokenizer, "prompt_len", 0)
    del detokenizer.token_ids[first : first + gone]
    if isinstance(detokenizer, BaseIncrementalDetokenizer):
        detokenizer.min_tokens = max(0, detokenizer.min_tokens - gone)
        _drop_text(detokenizer)
    if isinstance(detokenizer, SlowIncrementalDetokenizer):
        pieces = max(0, detokenizer.prefix_offset - KEEP)
        del detokenizer.tokens[:pieces]
        detokenizer.prefix_offset -= pieces
        detokenizer.read_offset -= pieces
    processor = state.logprobs_processor
    if processor.logprobs:
        processor.logprobs = processor.logprobs[gone:]
    state.sent_tokens_offset = max(0, state.sent_tokens_offset - gone)
    if compat.weight_version_span() is not None:
        starts = state.weight_version_starts
        state.weight_version_starts = [(v, start - gone) for v, start in starts]
    setattr(state, GONE, getattr(state, GONE, 0) + gone)


def _drop_text(detokenizer: Any) -> None:
    longest_stop = max((len(s) for s in detokenizer.stop), default=0)
    sent: int = detokenizer._last_output_text_offset
    gone = max(0, sent - longest_stop - KEEP)
    detokenizer.output_text = detokenizer.output_text[gone:]
    detokenizer._last_output_text_offset = sent - gone
