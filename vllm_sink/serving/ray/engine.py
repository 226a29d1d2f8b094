"""The engine of a replica: Ray's ``VLLMEngine`` with this project's front end in its process."""

from __future__ import annotations

from typing import Any

from ray.llm._internal.serve.engines.vllm.vllm_engine import VLLMEngine

from vllm_sink.startup.front_end import install_front_end


class StreamEngine(VLLMEngine):
    """Installs the front end in the replica's process, where requests arrive.

    For a GPU engine Ray makes the config in a task of its own, so what
    ``EngineArgs.create_engine_config`` installs is installed in that task's process.
    """

    def _start_async_llm_engine(
        self, vllm_engine_args: Any, vllm_engine_config: Any, placement_group: Any
    ) -> Any:
        install_front_end(vllm_engine_config)
        return super()._start_async_llm_engine(
            vllm_engine_args, vllm_engine_config, placement_group
        )
