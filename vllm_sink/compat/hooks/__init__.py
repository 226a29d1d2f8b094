"""Every place where this package depends on vLLM's internals, and why.

``WRAPS`` is what is installed at run time, in this order; ``OVERRIDES`` names the classes that vLLM
takes through its own settings; ``READS`` the attributes that no interface promises. Imports are
found in the package's own source. Installing, probing, ``vllm-sink doctor --hooks`` and the index
of ``patches/`` use these tables.
"""

from vllm_sink.compat.hooks import (
    reads_attention,
    reads_config,
    reads_engine_core,
    reads_front_end,
    reads_worker,
)
from vllm_sink.compat.hooks.hook import Hook, Installed, Kind, Place
from vllm_sink.compat.hooks.installed import WRAPS
from vllm_sink.compat.hooks.overrides import OVERRIDES
from vllm_sink.compat.hooks.public import PUBLIC
from vllm_sink.compat.hooks.ray import RAY_OVERRIDES, RAY_READS, RAY_WRAPS

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
