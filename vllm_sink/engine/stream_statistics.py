"""The scheduler's part of the statistics: when streams begin, are preempted, roll and end."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, TypeAlias

from typing_extensions import override

from vllm_sink import compat
from vllm_sink.config.tenancy import TenancyConfig
from vllm_sink.metrics.collector import StreamCollector
from vllm_sink.requests.core_request import server_fields
from vllm_sink.segments import base_of
from vllm_sink.tenancy.labels import Labels

if TYPE_CHECKING:
    from vllm.v1.metrics.stats import SchedulerStats
    from vllm.v1.request import Request

    from vllm_sink.engine.admission import Admission

    class _Base(Admission):
        pass
else:
    _Base: TypeAlias = object


class StreamReporting(_Base):
    """Stands before ``Admission``: sees what it does.

    Attributes:
        statistics: None under ``--disable-log-stats``.
    """

    statistics: StreamCollector | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if not self.log_stats:
            return
        config = TenancyConfig.from_config(self.vllm_config.additional_config)
        self.statistics = StreamCollector(
            self.manager,
            self.kv_policy.native,
            self.reservations,
            self.streams_that_fit,
            Labels(config.max_tenants, config.plain_names) if config.on else None,
        )

    @override
    def add_request(self, request: Request) -> None:
        if self.statistics is not None and request.request_id not in self.requests:
            self.statistics.opened(request.request_id, server_fields(request).tenant)
        super().add_request(request)

    @override
    def _preempt_request(self, request: Request, *args: Any, **kwargs: Any) -> None:
        super()._preempt_request(request, *args, **kwargs)
        if self.statistics is not None:
            self.statistics.preempted(request.request_id, server_fields(request).stream)

    def _roll(self, request: Request) -> None:
        if self.statistics is None:
            super()._roll(request)
            return
        self.statistics.rolls(request.request_id)
        begin, rollovers, base = time.perf_counter(), self.rollovers, base_of(request)
        super()._roll(request)
        if self.rollovers > rollovers:
            seconds = time.perf_counter() - begin
            self.statistics.rolled(request.request_id, base_of(request) - base, seconds)

    @override
    def _free_request_blocks(self, request: Request) -> None:
        if self.statistics is not None:
            self.statistics.released(
                request.request_id, request.num_computed_tokens - request.num_in_flight_tokens
            )
        super()._free_request_blocks(request)

    @override
    def _free_blocks(self, request: Request) -> None:
        super()._free_blocks(request)
        if self.statistics is not None:
            self.statistics.ended(request.request_id, request.num_tokens)

    def give_up(self, request_id: str) -> None:
        super().give_up(request_id)
        if self.statistics is not None:
            self.statistics.ended(request_id, 0)

    @override
    def make_stats(self, *args: Any, **kwargs: Any) -> SchedulerStats | None:
        stats = super().make_stats(*args, **kwargs)
        if stats is not None and self.statistics is not None:
            compat.put_stats(stats, self.statistics.message())
        return stats
