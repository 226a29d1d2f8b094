"""Every place where this package leans on more of vLLM than vLLM promises, and why.

``WRAPS`` is what is installed at run time, and in which order; ``OVERRIDES`` names the classes that
vLLM takes by its own settings; ``READS`` the attributes that no interface promises. What is
imported, the package's own source says. Installing, probing, ``vllm-sink doctor --hooks`` and the
index of ``patches/`` are made from these tables.
"""

from vllm_sink.compat.hooks import (
    reads_attention,
    reads_config,
    reads_engine_core,
    reads_front_end,
    reads_worker,
)
from vllm_sink.compat.hooks.hook import Hook, Installed, Kind, Place
from vllm_sink.compat.hooks.overrides import OVERRIDES
from vllm_sink.compat.hooks.public import PUBLIC
from vllm_sink.compat.hooks.ray import RAY_OVERRIDES, RAY_READS, RAY_WRAPS
from vllm_sink.compat.hooks.wraps import WRAPS

READS = (
    *reads_engine_core.READS,
    *reads_front_end.READS,
    *reads_worker.READS,
    *reads_attention.READS,
    *reads_config.READS,
)

__all__ = [
    "OVERRIDES",
    "PUBLIC",
    "RAY_OVERRIDES",
    "RAY_READS",
    "RAY_WRAPS",
    "READS",
    "WRAPS",
    "Hook",
    "Installed",
    "Kind",
    "Place",
]
