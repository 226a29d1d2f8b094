"""Second step of start-up: vLLM makes its config with the plan's numbers in its arguments."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from vllm_sink.config.kv_policy import CONFIG_KEY
from vllm_sink.startup.resolve import Plan

#: Fine enough that a window wastes little, and what vLLM's CPU build asks for.
CPU_BLOCK_SIZE = 32


def build(engine_args: Any, plan: Plan, create: Callable[[], Any]) -> Any:
    """vLLM's ``VllmConfig``.

    Args:
        engine_args: vLLM's; ``max_model_len`` is restored on return.
        plan: of the engine.
        create: vLLM's ``create_engine_config``, bound.
    """
    from vllm.platforms import current_platform

    engine_args.additional_config = {
        **engine_args.additional_config,
        CONFIG_KEY: plan.kv_policy.to_config(),
    }
    if current_platform.is_cpu() and engine_args.block_size is None:
        engine_args.block_size = CPU_BLOCK_SIZE
    wanted = engine_args.max_model_len
    engine_args.max_model_len = plan.max_model_len
    try:
        with _long_streams():
            return create()
    finally:
        engine_args.max_model_len = wanted


@contextmanager
def _long_streams() -> Iterator[None]:
    """Let vLLM take a ``max_model_len`` past the model's context while the config is made.

    vLLM refuses it, or warns of positions that were never learned. Under the policy no token gets
    one: positions end at S + W - 1.
    """
    name = "VLLM_ALLOW_LONG_MAX_MODEL_LEN"
    before = os.environ.get(name)
    loggers = [logging.getLogger("vllm.config.model")]

    def not_the_warning(record: logging.LogRecord) -> bool:
        return "is greater than the derived max_model_len" not in record.getMessage()

    for log in loggers:
        log.addFilter(not_the_warning)
    os.environ[name] = "1"
    try:
        yield
    finally:
        for log in loggers:
            log.removeFilter(not_the_warning)
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
