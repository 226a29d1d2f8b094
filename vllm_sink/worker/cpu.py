"""The CPU platform's worker."""

from __future__ import annotations

from typing import Any

from typing_extensions import override
from vllm.v1.worker.cpu_worker import CPUWorker

from vllm_sink.attention import cpu_decode
from vllm_sink.vllm_fixes.rewindable_generator import prepare_discarded_draws
from vllm_sink.worker.worker import SinkWorkerMixin


class SinkCPUWorker(SinkWorkerMixin, CPUWorker):
    """vLLM: ``v1/worker/cpu_worker.py``."""

    @override
    def compile_or_warm_up_model(self) -> Any:
        # Compile it now, not when the first stream decodes.
        cpu_decode.kernel()
        return super().compile_or_warm_up_model()

    @override
    def sample_tokens(self, *args: Any, **kwargs: Any) -> Any:
        if not self.use_v2_model_runner:
            prepare_discarded_draws(self.model_runner)
        return super().sample_tokens(*args, **kwargs)
