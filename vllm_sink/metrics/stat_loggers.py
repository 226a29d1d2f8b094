"""Gives vLLM's engines the stat logger: wraps ``AsyncLLM.__init__`` and ``LLMEngine.__init__``.

Their parameter ``stat_loggers`` is vLLM's interface for it. The entry point group
``vllm.stat_logger_plugins`` is not used: a logger that comes that way turns statistics on under
``--disable-log-stats`` as well, and for engines without a policy too (``AsyncLLM.__init__``), does
not reach ``LLM``, and cannot see that Ray's metrics are asked for.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from vllm.logger import init_logger
from vllm.v1.metrics.loggers import PrometheusStatLogger

from vllm_sink.config.kv_policy import policy_of
from vllm_sink.metrics.export import SinkStatLogger, ray_logger

logger = init_logger("vllm.sink")


def add_stat_logger(init: Callable[..., None], engine: Any, *args: Any, **kwargs: Any) -> None:
    """``__init__`` of an engine's front end that also exports the streams' statistics."""
    call = inspect.signature(init).bind(*args, **kwargs)
    if policy_of(call.arguments["vllm_config"]) is not None:
        if call.arguments["log_stats"]:
            loggers = list(call.arguments.get("stat_loggers") or [])
            call.arguments["stat_loggers"] = [*loggers, _logger_beside(loggers)]
        elif _serves(engine):
            logger.warning(
                "--disable-log-stats: /metrics has no vllm_sink_* metrics, and none of vLLM's "
                "own. Start without the flag to see streams, blocks and churn"
            )
    init(*call.args, **call.kwargs)


def _serves(engine: Any) -> bool:
    """Whether the engine is a server's; ``LLM`` disables statistics unless it is asked for them."""
    return any(cls.__name__ == "AsyncLLM" for cls in type(engine).__mro__)


def _logger_beside(loggers: list[Any]) -> type[SinkStatLogger]:
    """The class for Ray's metrics if Ray's logger is among these, else for prometheus-client."""
    for other in loggers:
        if isinstance(other, type) and issubclass(other, PrometheusStatLogger):
            from vllm.v1.metrics.ray_wrappers import RayPrometheusStatLogger

            if issubclass(other, RayPrometheusStatLogger):
                return ray_logger()
    return SinkStatLogger
