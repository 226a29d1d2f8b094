"""The part of long prompts that has no room in a segment yet."""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vllm.v1.request import Request


class WaitingPrompts:
    """Prompts that are longer than a segment, of one engine; 4 bytes a token.

    Args:
        full: maximum of tokens that vLLM gets at once.
        hash_block_size: tokens of a hashed block.
    """

    def __init__(self, full: int, hash_block_size: int) -> None:
        self._full = full
        self._hash_block_size = hash_block_size
        self._tokens: dict[str, array[int]] = {}

    def __bool__(self) -> bool:
        return bool(self._tokens)

    def __contains__(self, request_id: object) -> bool:
        return request_id in self._tokens

    def count(self, request_id: str) -> int:
        """Tokens of a request that wait."""
        return len(self._tokens.get(request_id, ()))

    def hold_back(self, request: Request) -> int:
        """Cut a prompt to what fits; return how many tokens wait."""
        assert request.prompt_token_ids is not None
        waiting = array("i", request._all_token_ids[self._full :])
        self._tokens[request.request_id] = waiting
        del request._all_token_ids[self._full :]
        request.prompt_token_ids = request.prompt_token_ids[: self._full]
        request.num_prompt_tokens = self._full
        del request.block_hashes[self._full // self._hash_block_size :]
        return len(waiting)

    def feed(self, request: Request) -> list[int]:
        """Append as many waiting tokens to a request as it has room for; return them."""
        waiting = self._tokens.get(request.request_id)
        if waiting is None:
            return []
        fed = waiting[: self._full - request.num_tokens].tolist()
        if len(fed) == len(waiting):
            del self._tokens[request.request_id]
        else:
            del waiting[: len(fed)]
        if fed:
            assert request.prompt_token_ids is not None
            request._all_token_ids.extend(fed)
            request.prompt_token_ids = request.prompt_token_ids + fed
            request.num_prompt_tokens += len(fed)
            request.update_block_hashes()
        return fed

    def forget(self, request_id: str) -> None:
        """Drop the waiting tokens of a request."""
        self._tokens.pop(request_id, None)
