"""Attributes that are read of an engine's configuration."""

from __future__ import annotations

from vllm_sink.compat.hooks.hook import reads

_ARGS = "vllm.engine.arg_utils:EngineArgs"

READS = (
    *reads(
        "vllm.config.scheduler:SchedulerConfig",
        "how much a step schedules, and which class does",
        "async_scheduling",
        "scheduler_cls",
        "max_num_seqs",
        "max_num_batched_tokens",
    ),
    *reads(
        "vllm.config.vllm:VllmConfig",
        "a step in flight still reads its window",
        "max_in_flight_tokens",
        "use_v2_model_runner",
    ),
    *reads(
        "vllm.config.vllm:VllmConfig",
        "the policy, and the settings that it follows or refuses",
        "additional_config",
        "model_config",
        "cache_config",
        "parallel_config",
        "scheduler_config",
        "attention_config",
        "compilation_config",
        "speculative_config",
        "kv_transfer_config",
        "kv_events_config",
    ),
    *reads(
        "vllm.config.model:ModelConfig",
        "what the model has learned, and how large its keys are",
        "hf_text_config",
        "architectures",
        "runner_type",
        "use_mla",
        "is_encoder_decoder",
        "uses_mrope",
        "max_model_len",
        "served_model_name",
        "dtype",
        "get_sliding_window",
        "get_head_size",
        "get_num_kv_heads",
        "get_num_layers",
        "get_vocab_size",
    ),
    *reads("vllm.config.model:ModelConfig", "what is refused", "is_diffusion", optional=True),
    *reads("vllm.config.aux_output:AuxOutputConfig", "what is refused", "enabled", optional=True),
    *reads(
        "vllm.config.cache:CacheConfig",
        "whether the pool holds a stream",
        "block_size",
        "cache_dtype",
        "num_gpu_blocks",
        "num_gpu_blocks_override",
        "kv_cache_memory_bytes",
        "kv_sharing_fast_prefill",
        "prefix_caching_hash_algo",
    ),
    *reads(
        "vllm.config.parallel:ParallelConfig",
        "which worker, and what is refused",
        "worker_cls",
        "data_parallel_size",
        "decode_context_parallel_size",
        "prefill_context_parallel_size",
        "pipeline_parallel_size",
    ),
    *reads(
        "vllm.config.attention:AttentionConfig",
        "the backend, and the memory of its graphs",
        "backend",
        "flash_attn_max_num_splits_for_cuda_graph",
    ),
    *reads(
        "vllm.config.compilation:CompilationConfig",
        "how large a step in a CUDA graph is",
        "max_cudagraph_capture_size",
        "cudagraph_mode",
    ),
    *reads(
        "vllm.config.compilation:CUDAGraphMode",
        "whether attention is in a CUDA graph",
        "has_full_cudagraphs",
    ),
    *reads(
        "vllm.config.kv_events:KVEventsConfig",
        "what is refused",
        "enable_kv_cache_events",
    ),
    *reads(
        _ARGS,
        "vLLM's config of a model, before the policy's numbers are chosen",
        "create_model_config",
    ),
)
