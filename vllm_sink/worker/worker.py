"""vLLM's workers with the policy, given to vLLM as ``worker_cls``, a public setting."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from typing_extensions import override
from vllm.config import set_current_vllm_config
from vllm.model_executor.layers.attention import Attention

from vllm_sink import compat
from vllm_sink.attention.metadata import SinkMetadataBuilder
from vllm_sink.attention.providers import is_paged
from vllm_sink.compat.install import install
from vllm_sink.config.kv_policy import policy_of
from vllm_sink.errors import PolicyError
from vllm_sink.worker.binding import bind_rotary
from vllm_sink.worker.runner_tables import RunnerTables
from vllm_sink.worker.v1_runner import V1RunnerTables
from vllm_sink.worker.v2_runner import V2RunnerTables

if TYPE_CHECKING:
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.kv_cache_interface import KVCacheSpec
    from vllm.v1.worker.gpu_worker import Worker

    _Base: TypeAlias = Worker
else:
    _Base = object


class SinkWorkerMixin(_Base):
    """The part of both platforms' workers."""

    tables: RunnerTables

    @override
    def load_model(self, **kwargs: Any) -> None:
        install("worker")
        with compat.attention_backend_override():
            super().load_model(**kwargs)
        model = self.model_runner.get_model()
        kv_policy = policy_of(self.vllm_config)
        assert kv_policy is not None
        bind_rotary(model, kv_policy.true_positions)
        # A provider that cannot compute these layers says so before the KV pool is allocated.
        for layer in model.modules():
            if isinstance(layer, Attention) and is_paged(layer.impl.provider_name):
                layer.impl.provider(self.model_config.dtype)

    @override
    def get_kv_cache_spec(self) -> dict[str, KVCacheSpec]:
        # The backend reads the policy from the current config, which vLLM does not set here.
        with set_current_vllm_config(self.vllm_config):
            return super().get_kv_cache_spec()

    @override
    def determine_available_memory(self) -> int:
        available = super().determine_available_memory()
        self._require_room(available)
        return available

    def _require_room(self, available: int) -> None:
        """Refuse a window that the pool cannot hold, before the pool is allocated."""
        kv_policy = policy_of(self.vllm_config)
        assert kv_policy is not None
        specs = self.get_kv_cache_spec().values()
        override = self.cache_config.num_gpu_blocks_override
        if override is not None:
            available = override * sum(spec.page_size_bytes for spec in specs)
        # vLLM keeps one block for itself, the null block.
        need = sum(s.max_memory_usage_bytes(self.vllm_config) + s.page_size_bytes for s in specs)
        if need > available:
            raise PolicyError(
                "--window-tokens",
                kv_policy.window,
                f"a smaller one, or a larger KV pool: one stream needs {need / 2**20:.1f} MiB of "
                f"KV and the pool has {available / 2**20:.1f} MiB",
            )

    @override
    def compile_or_warm_up_model(self) -> Any:
        kv_policy = policy_of(self.vllm_config)
        assert kv_policy is not None
        if is_paged(kv_policy.provider):
            from vllm_sink.attention.warmup import warm_up

            warm_up(self.model_runner, self.vllm_config)
        return super().compile_or_warm_up_model()

    @override
    def initialize_from_config(self, kv_cache_config: Any) -> None:
        super().initialize_from_config(kv_cache_config)
        kv_policy = policy_of(self.vllm_config)
        assert kv_policy is not None
        adapter = V2RunnerTables if self.vllm_config.use_v2_model_runner else V1RunnerTables
        self.tables = adapter(self.model_runner, kv_policy.default)
        for groups in self.model_runner.attn_groups:
            for group in groups:
                for builder in group.metadata_builders:
                    assert isinstance(builder, SinkMetadataBuilder)
                    builder.rows = self.tables

    @override
    def execute_model(self, scheduler_output: SchedulerOutput) -> Any:
        # The runner's tensors were made in inference mode, and can only be changed in it.
        with torch.inference_mode():
            self.tables.before_step(scheduler_output)
        return super().execute_model(scheduler_output)

    def count_rollovers(self) -> int:
        """The number of rollovers; for ``collective_rpc``."""
        return self.tables.count
