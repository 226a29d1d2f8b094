"""What a detokenizer reads of a prompt: its end.

vLLM gives the whole prompt to tokenizers' ``DecodeStream`` (``v1/engine/detokenizer.py``), which
turns all of it into text at the first token of the answer, in the event loop: more than a second
for a million tokens, in which no other stream is served. Only a UTF-8 sequence that a prompt left
open is ever looked at; vLLM's detokenizer for slow tokenizers reads five tokens.

A ``DecodeStream`` that begins with an open sequence says all that it was given once that is closed:
the last tokens are therefore told it one by one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tokenizers.decoders

#: Tokens of a prompt that are read.
PRIMED = 256
#: Tokens of a UTF-8 sequence that may be missing, or there, when a prompt ends.
OPEN = 3


def with_prompts_end(init: Callable[..., None]) -> Callable[..., None]:
    """``FastIncrementalDetokenizer.__init__`` that primes with the end of a long prompt."""

    def primed(self: Any, tokenizer: Any, request: Any) -> None:
        init(self, tokenizer, request)
        prompt = request.prompt_token_ids
        if prompt is not None and len(prompt) > PRIMED:
            self.stream = tokenizers.decoders.DecodeStream(
                ids=prompt[-PRIMED:-OPEN], skip_special_tokens=self.skip_special_tokens
            )
            for token in prompt[-OPEN:]:
                self._protected_step(token)

    return primed
