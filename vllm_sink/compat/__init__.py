"""Everything that depends on which vLLM this is.

``shims`` is what the rest of the package calls instead of vLLM; ``hooks`` lists every place where
the package leans on more of vLLM than vLLM promises; ``probes`` sees whether those places are there
in a given vLLM, by its sources (``source``), and nothing else decides what is supported.
"""

from vllm_sink.compat.shims import (
    ATTENTION_BACKEND,
    add_scheduler_stats,
    attention_backend_override,
    block_table,
    prompt_states,
    put_stats,
    serve_arguments,
    set_core_request,
    take_stats,
    unwrap_all,
    weight_version_span,
    wrap,
    wrap_method_of,
    wrap_v1_positions,
)

__all__ = [
    "ATTENTION_BACKEND",
    "add_scheduler_stats",
    "attention_backend_override",
    "block_table",
    "prompt_states",
    "put_stats",
    "serve_arguments",
    "set_core_request",
    "take_stats",
    "unwrap_all",
    "weight_version_span",
    "wrap",
    "wrap_method_of",
    "wrap_v1_positions",
]
