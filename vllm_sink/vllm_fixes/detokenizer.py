"""Text of tokens as they come: exact at U+FFFD and special tokens, at a constant cost per token.

vLLM's detokenizers (``v1/engine/detokenizer.py``) give out no text while it ends in U+FFFD, which
may be a UTF-8 sequence that the next token completes, and decode everything since they last did:
an answer of U+FFFD stays empty, a prompt that ends in U+FFFD is repeated in the answer, and skipped
special tokens pile up, each step reading all of them again. Tokenizers' ``DecodeStream`` also turns
a whole prompt into text at the first token of the answer, in the event loop.

Here a ``ByteDecodeStream`` or a ``TextDecodeStream`` gives out text, from the tokens of an answer
and the last ones of its prompt; the rest of a detokenizer, stop strings above all, is vLLM's.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from typing_extensions import override
from vllm.tokenizers.detokenizer_utils import _convert_tokens_to_string_with_added_encoders
from vllm.v1.engine.detokenizer import (
    BaseIncrementalDetokenizer,
    FastIncrementalDetokenizer,
    SlowIncrementalDetokenizer,
)

from vllm_sink.vllm_fixes.decode_stream import DecodeStream
from vllm_sink.vllm_fixes.text_decode_stream import TextDecodeStream
from vllm_sink.vllm_fixes.vocabulary import Vocabulary


class WithDecodeStream(BaseIncrementalDetokenizer):
    """Gives out what its ``stream`` holds when an answer ends."""

    stream: DecodeStream
    _stopped = False

    @override
    def update(self, new_token_ids: list[int], stop_terminated: bool) -> str | None:
        stop: str | None = super().update(new_token_ids, stop_terminated)
        self._stopped = self._stopped or stop is not None
        return stop

    @override
    def get_next_output_text(self, finished: bool, delta: bool) -> str:
        if finished and not self._stopped:  # a stop string has cut the text before what is held
            self.output_text += self.stream.flush()
        text: str = super().get_next_output_text(finished, delta)
        return text


class FastDetokenizer(WithDecodeStream, FastIncrementalDetokenizer):
    """vLLM's for tokenizers of the tokenizers library, with a decode stream of this package."""

    @override
    def __init__(self, tokenizer: Any, request: Any) -> None:
        super().__init__(tokenizer, _without_prompt(request))
        vocabulary = Vocabulary.of(self.tokenizer)
        self.stream = vocabulary.stream(request.prompt_token_ids or (), self.skip_special_tokens)

    @override
    def _protected_step(self, next_token_id: int) -> str | None:
        return self.stream.step(next_token_id)


class SlowDetokenizer(WithDecodeStream, SlowIncrementalDetokenizer):
    """vLLM's for every other tokenizer, with a decode stream of this package.

    It holds no token of the prompt, so ``prompt_len`` is 0.
    """

    @override
    def __init__(self, tokenizer: Any, request: Any) -> None:
        super().__init__(tokenizer, _without_prompt(request))
        self._size = len(tokenizer)
        prompt = request.prompt_token_ids or ()
        self.stream = TextDecodeStream(
            self._read, self._decode, lambda n: self._decode([n]), prompt
        )

    @override
    def decode_next(self, next_token_id: int) -> str:
        return self.stream.step(next_token_id)

    def _read(self, token: int) -> str | None:
        if not 0 <= token < self._size:
            return None
        names = self.tokenizer.convert_ids_to_tokens(
            [token], skip_special_tokens=self.skip_special_tokens
        )
        return (names[0] or None) if names else None

    def _decode(self, names: list[str]) -> str:
        """As ``detokenize_incrementally`` (``vllm/tokenizers/detokenizer_utils.py``) does."""
        tokenizer = self.tokenizer
        if tokenizer.is_fast or not tokenizer.get_added_vocab():
            return tokenizer.convert_tokens_to_string(names)
        return _convert_tokens_to_string_with_added_encoders(
            tokenizer,
            names,
            skip_special_tokens=self.skip_special_tokens,
            spaces_between_special_tokens=self.spaces_between_special_tokens,
        )


def _without_prompt(request: Any) -> Any:
    """A request for vLLM's own constructors, which copy or decode the whole prompt."""
    bare = copy.copy(request)
    bare.prompt_token_ids, bare.prompt_embeds = [], None
    return bare


_OURS: dict[type, type] = {
    FastIncrementalDetokenizer: FastDetokenizer,
    SlowIncrementalDetokenizer: SlowDetokenizer,
}


def choose_detokenizer(
    from_new_request: Callable[..., Any], cls: Any, tokenizer: Any, request: Any
) -> Any:
    """``IncrementalDetokenizer.from_new_request`` that makes this project's, as vLLM chooses."""
    theirs = from_new_request(tokenizer, _without_prompt(request))
    ours = _OURS.get(type(theirs))
    if ours is None:  # the request wants no text
        return from_new_request(tokenizer, request)
    return ours(tokenizer, request)
