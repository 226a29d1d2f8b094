"""Attributes that are read where attention is computed."""

from __future__ import annotations

from vllm_sink.compat.hooks.hook import Hook, reads

READS = (
    *reads(
        "vllm.v1.attention.backend:CommonAttentionMetadata",
        "the rows of a step",
        "positions",
        "seq_lens_cpu_upper_bound",
        "block_table_tensor",
        "num_reqs",
        "num_actual_tokens",
        "max_query_len",
        "max_seq_len",
        "query_start_loc",
        "query_start_loc_cpu",
        "seq_lens",
        "slot_mapping",
    ),
    *reads(
        "vllm.v1.attention.backends.registry:AttentionBackendEnum",
        "where the backend is registered, and on a CPU only while a model is built",
        "CUSTOM",
        "CPU_ATTN",
        "clear_override",
    ),
    *reads(
        "vllm.v1.attention.backend:AttentionCGSupport",
        "which steps may be CUDA graphs",
        "NEVER",
        "UNIFORM_SINGLE_TOKEN_DECODE",
    ),
    *reads("vllm.v1.attention.backend:AttentionType", "layers that have a stream", "DECODER"),
    *reads("vllm.v1.kv_cache_interface:KVCacheLayout", "a slot is contiguous memory", "LBNHC"),
    Hook(
        "reads",
        "vllm.v1.attention.selector:_cached_get_attn_backend",
        "its cache does not know the policy",
    ),
    Hook(
        "reads",
        "vllm._custom_ops:apply_repetition_penalties",
        "penalties count tokens that have rolled out (V1 runner)",
    ),
    Hook("reads", "vllm.envs:VLLM_CACHE_ROOT", "where a compiled kernel is kept"),
    Hook(
        "reads",
        "vllm.envs:VLLM_ENABLE_RESPONSES_API_STORE",
        "a store for all tenants is refused where they have keys",
    ),
    *(
        Hook("reads", f"vllm.v1.metrics.ray_wrappers:Ray{kind}Wrapper", "metrics in Ray")
        for kind in ("Gauge", "Counter", "Histogram")
    ),
)
