"""The CPU platform's worker."""

from vllm.v1.worker.cpu_worker import CPUWorker

from vllm_sink.worker.worker import SinkWorkerMixin


class SinkCPUWorker(SinkWorkerMixin, CPUWorker):
    """vLLM: ``v1/worker/cpu_worker.py``."""
