"""The CUDA platform's worker."""

from vllm.v1.worker.gpu_worker import Worker

from vllm_sink.worker.worker import SinkWorkerMixin


class SinkGPUWorker(SinkWorkerMixin, Worker):
    """vLLM: ``v1/worker/gpu_worker.py``."""
