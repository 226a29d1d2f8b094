"""Everything that depends on which vLLM this is.

``shims`` is what the rest of the package calls instead of vLLM. ``hooks`` lists every place where
the package leans on more of vLLM than vLLM promises: ``install`` installs them, ``probes`` sees
whether those places are there in a given vLLM, by its sources (``source``), and nothing else
decides what is supported.
"""

from vllm_sink.compat.shims import (
    ATTENTION_BACKEND,
    attention_backend_override,
    block_table,
    prompt_states,
    put_stats,
    serve_arguments,
    take_stats,
    weight_version_span,
)

__all__ = [
    "ATTENTION_BACKEND",
    "attention_backend_override",
    "block_table",
    "prompt_states",
    "put_stats",
    "serve_arguments",
    "take_stats",
    "weight_version_span",
]
