"""Everything that depends on the version of vLLM.

``shims`` is what the rest of the package calls instead of vLLM. ``hooks`` lists every place where
the package depends on vLLM's internals: ``install`` installs them, ``probes`` checks in the sources
of a given vLLM (``source``) that those places exist, and nothing else decides what is supported.
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
