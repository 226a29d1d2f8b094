"""Which class of this package overrides which of vLLM's, and the setting that names it."""

from __future__ import annotations

_SCHEDULER = "vllm.v1.core.sched.scheduler:Scheduler"

#: Class here, vLLM's class, setting. The methods are those marked ``@override``.
OVERRIDES = (
    ("vllm_sink.engine.rollover:RollingStreams", _SCHEDULER, "scheduler_cls"),
    ("vllm_sink.engine.stream_scheduling:StreamScheduling", _SCHEDULER, "scheduler_cls"),
    ("vllm_sink.engine.admission:Admission", _SCHEDULER, "scheduler_cls"),
    ("vllm_sink.engine.stream_statistics:StreamReporting", _SCHEDULER, "scheduler_cls"),
    (
        "vllm_sink.cache.manager:SinkWindowManager",
        "vllm.v1.core.single_type_kv_cache_manager:SingleTypeKVCacheManager",
        "KVCacheSpecRegistry",
    ),
    (
        "vllm_sink.cache.spec:SinkWindowSpec",
        "vllm.v1.kv_cache_interface:AttentionSpec",
        "KVCacheSpecRegistry",
    ),
    ("vllm_sink.worker.worker:SinkWorkerMixin", "vllm.v1.worker.gpu_worker:Worker", "worker_cls"),
    ("vllm_sink.worker.cpu:SinkCPUWorker", "vllm.v1.worker.cpu_worker:CPUWorker", "worker_cls"),
    (
        "vllm_sink.attention.backend:SinkAttentionImpl",
        "vllm.v1.attention.backend:AttentionImpl",
        "register_backend",
    ),
    (
        "vllm_sink.attention.backend:SinkAttentionBackend",
        "vllm.v1.attention.backend:AttentionBackend",
        "register_backend",
    ),
    (
        "vllm_sink.attention.metadata:SinkMetadataBuilder",
        "vllm.v1.attention.backend:AttentionMetadataBuilder",
        "register_backend",
    ),
    (
        "vllm_sink.vllm_fixes.detokenizer:WithDecodeStream",
        "vllm.v1.engine.detokenizer:FastIncrementalDetokenizer",
        "from_new_request",
    ),
    (
        "vllm_sink.vllm_fixes.detokenizer:FastDetokenizer",
        "vllm.v1.engine.detokenizer:FastIncrementalDetokenizer",
        "from_new_request",
    ),
    (
        "vllm_sink.vllm_fixes.detokenizer:SlowDetokenizer",
        "vllm.v1.engine.detokenizer:SlowIncrementalDetokenizer",
        "from_new_request",
    ),
)
