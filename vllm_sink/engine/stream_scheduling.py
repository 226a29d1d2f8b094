"""Every request's ``S`` and ``W`` reach its hashes and its blocks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

from typing_extensions import override
from vllm.utils.hashing import get_hash_fn_by_name
from vllm.v1.request import RequestStatus

from vllm_sink.cache.hashing import SinkBlockHashes, sink_block_hasher
from vllm_sink.cache.manager import SinkWindowManager
from vllm_sink.config.kv_policy import policy_of
from vllm_sink.policy import StreamPolicy
from vllm_sink.requests.options import stream_policy_of
from vllm_sink.segments import ENDLESS_TOKENS

if TYPE_CHECKING:
    from vllm.v1.request import Request

    from vllm_sink.engine.rollover import RollingStreams

    _Base: TypeAlias = RollingStreams
else:
    _Base = object


class StreamScheduling(_Base):
    """The part that both schedulers get."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        found = policy_of(self.vllm_config)
        assert found is not None, "this scheduler belongs to engines with a policy"
        self.kv_policy = found
        self._hash_fn = get_hash_fn_by_name(self.cache_config.prefix_caching_hash_algo)
        (manager,) = self.kv_cache_manager.coordinator.single_type_managers
        assert isinstance(manager, SinkWindowManager)
        self.manager = manager
        manager.max_in_flight_tokens = self.vllm_config.max_in_flight_tokens

    @override
    def add_request(self, request: Request) -> None:
        if request.request_id not in self.requests:
            self._open(request)
        super().add_request(request)

    def bounds(self, request: Request) -> tuple[StreamPolicy, int]:
        """``S`` and ``W`` of a request, and its maximum length in tokens."""
        kept = stream_policy_of(request.sampling_params, self.kv_policy.default)
        limit = self.kv_policy.stream_tokens or ENDLESS_TOKENS
        return kept, min(request.num_prompt_tokens + request.max_tokens, limit)

    def _open(self, request: Request) -> None:
        default = self.kv_policy.default
        kept, _ = self.bounds(request)
        self.manager.open_stream(request.request_id, kept)
        if kept != default and request._block_hasher is not None:
            shared = min(kept.sees_everything_below, default.sees_everything_below)
            request.block_hashes = SinkBlockHashes(kept)
            request._block_hasher = sink_block_hasher(
                self.hash_block_size, self._hash_fn, kept, shared
            )
            request.update_block_hashes()

    @override
    def _free_blocks(self, request: Request) -> None:
        super()._free_blocks(request)
        self.manager.close_stream(request.request_id)

    def give_up(self, request_id: str) -> None:
        """Remove every trace of a request that could not be added."""
        request = self.requests.get(request_id)
        if request is not None:  # vLLM has it, so it ends as any other
            self.finish_requests(request_id, RequestStatus.FINISHED_ABORTED)
        self.forget_waiting_prompt(request_id)
        self.manager.close_stream(request_id)
