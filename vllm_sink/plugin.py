"""The entry point that vLLM calls in every process (``vllm.general_plugins``)."""

from __future__ import annotations


def register() -> None:
    """Add the flags to vLLM's command line and let an engine's config choose a policy.

    Re-entrant: vLLM may load plugins more than once. Nothing else of vLLM is touched until an
    engine is made with a policy.
    """
    from vllm_sink.compat.install import install

    install("plugin")
