"""The entry point that vLLM calls in every process (``vllm.general_plugins``)."""

from __future__ import annotations


def register() -> None:
    """Add the flags to vLLM's command line and let an engine's config choose a policy.

    Re-entrant: vLLM may load plugins more than once. Nothing else of vLLM is touched until an
    engine is made with a policy.
    """
    from vllm.engine.arg_utils import EngineArgs

    from vllm_sink import compat
    from vllm_sink.startup import engine_config, flags

    compat.wrap(EngineArgs, "add_cli_args", flags.with_flags)
    compat.wrap(EngineArgs, "from_cli_args", flags.with_policy_from_flags)
    compat.wrap(EngineArgs, "create_engine_config", engine_config.with_policy)
