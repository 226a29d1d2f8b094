"""Properties of a fast tokenizer's tokens, cached for all answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import Any

from tokenizers import decoders

from vllm_sink.vllm_fixes.byte_decode_stream import ByteDecodeStream, bytes_of
from vllm_sink.vllm_fixes.decode_stream import DecodeStream
from vllm_sink.vllm_fixes.text_decode_stream import TextDecodeStream

#: Tokens whose bytes or text are cached for a tokenizer, about 2 MB.
REMEMBERED = 8192


class Vocabulary:
    """Properties of a fast tokenizer's tokens; one for each tokenizer.

    Args:
        backend: a ``tokenizers.Tokenizer``, or what stands for one.

    Attributes:
        byte_level: each of its tokens is bytes.
        special: ids that ``skip_special_tokens`` skips.
        spelled: a token id's bytes if ``byte_level``; None for an id that is none.
        alone: the text of one token id; None for an id that is none.
    """

    def __init__(self, backend: Any) -> None:
        self._backend = backend
        self._decode: Callable[[list[int]], str] = partial(
            backend.decode, skip_special_tokens=False
        )
        self.byte_level = isinstance(getattr(backend, "decoder", None), decoders.ByteLevel)
        added = backend.get_added_tokens_decoder()
        self.special = frozenset(token for token, it in added.items() if it.special)
        self.spelled = lru_cache(REMEMBERED)(self._spelled)
        self.alone = lru_cache(REMEMBERED)(self._alone)

    @classmethod
    def of(cls, backend: Any) -> Vocabulary:
        """The vocabulary of this tokenizer, an attribute of it like vLLM's ``added_token_ids``."""
        found = getattr(backend, "sink_vocabulary", None)
        if found is None or found._backend is not backend:
            found = backend.sink_vocabulary = cls(backend)
        return found

    def _name(self, token: int) -> str | None:
        try:
            return self._backend.id_to_token(token)
        except (OverflowError, TypeError):  # negative, huge, or no number
            return None

    def _alone(self, token: int) -> str | None:
        return None if self._name(token) is None else self._decode([token])

    def _spelled(self, token: int) -> bytes | None:
        name = self._name(token)
        return None if name is None else bytes_of(name)

    def stream(self, prompt: Sequence[int], skip_special_tokens: bool) -> DecodeStream:
        """A decode stream for the text after a prompt."""
        skipped = self.special if skip_special_tokens else frozenset()
        if self.byte_level:
            spelled = self.spelled
            return ByteDecodeStream(lambda t: None if t in skipped else spelled(t), prompt)
        alone = self.alone
        read = lambda t: None if t in skipped or alone(t) is None else t  # noqa: E731
        return TextDecodeStream(read, self._decode, alone, prompt)
