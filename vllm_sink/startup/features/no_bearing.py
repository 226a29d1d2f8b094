"""Settings of vLLM that a stream does not depend on."""

from __future__ import annotations

#: Settings that a stream does not depend on: why, and the fields.
NO_BEARING = (
    (
        "Which model, tokenizer and revision, and how they are loaded: the policy reads the "
        "result.",
        "additional_config code_revision config config_format download_dir generation_config "
        "hf_config_path hf_overrides hf_token ignore_patterns load_format "
        "max_parallel_loading_workers model model_loader_extra_config model_tag model_weights "
        "override_generation_config pt_load_map_location revision safetensors_load_strategy "
        "safetensors_prefetch_block_size safetensors_prefetch_num_threads served_model_name "
        "tokenizer tokenizer_mode tokenizer_revision trust_remote_code use_tqdm_on_load",
    ),
    (
        "Modalities: every model that has one is refused by its architecture.",
        "allowed_local_media_path allowed_media_domains default_mm_loras "
        "disable_chunked_mm_input ec_manager_config enable_mm_embeds enable_mm_processor_stats "
        "enable_shm_tensor_arena enable_tower_connector_lora interleave_mm_strings "
        "language_model_only limit_mm_per_prompt media_io_kwargs mm_device_do_normalize "
        "mm_encoder_attn_backend mm_encoder_attn_dtype mm_encoder_fp8_scale_path "
        "mm_encoder_fp8_scale_save_margin mm_encoder_fp8_scale_save_path mm_encoder_only "
        "mm_encoder_tp_mode mm_hasher_algorithm mm_ipc_gpu_memory_gb mm_processor_cache_gb "
        "mm_processor_cache_type mm_processor_device mm_processor_kwargs "
        "mm_shm_cache_max_object_size_mb mm_tensor_ipc multi_modal_data multi_modal_uuids "
        "skip_mm_profiling trust_request_mm_kwargs video_pruning_method video_pruning_rate",
    ),
    (
        "Layers that no supported model has: experts, state spaces, n-gram tables, latent or "
        "sparse attention.",
        "all2all_backend enable_flash_late_interaction enable_hc_sp "
        "enable_mamba_cache_stochastic_rounding enable_mamba_shared_prefix_checkpoint "
        "enable_mixed_moe_lora_format enable_moe_shared_loras engram_config gdn_prefill_backend "
        "kda_decode_backend kda_prefill_backend mamba_backend mamba_block_size "
        "mamba_cache_dtype mamba_cache_mode mamba_cache_philox_rounds mamba_config "
        "mamba_ssm_cache_dtype mamba_ssu_algorithm max_lora_cls_labels moe_backend "
        "replayssm_buffer_len routed_experts_prompt_start sparse_indexer_topk_backend "
        "swa_bounded_replay token_type_ids use_replayssm",
    ),
    (
        "Sizes and places: how much memory, which cores and cards, which kernels.",
        "_api_process_count _api_process_rank cpu_distributed_timeout_seconds device_ids "
        "disable_cascade_attn distributed_timeout_seconds enable_cumem_allocator "
        "enable_flashinfer_autotune fail_on_environ_validation gpu_memory_utilization "
        "ir_op_priority kernel_config max_num_seqs numa_bind numa_bind_cpus numa_bind_nodes "
        "ray_workers_use_nsight renderer_num_workers use_fp64_gumbel",
    ),
    (
        "Reporting: logs, traces, metrics, profiles.",
        "aggregate_engine_logging collect_detailed_traces cudagraph_metrics "
        "custom_histogram_buckets disable_access_log_for_endpoints disable_uvicorn_access_log "
        "enable_force_include_usage enable_layerwise_nvtx_tracing enable_log_requests "
        "enable_logging_iteration_details enable_mfu_metrics enable_per_request_metrics "
        "enable_prompt_tokens_details enable_server_load_tracking fingerprint_mode "
        "fingerprint_value jit_monitor_mode jit_monitor_verbose log_config_file log_error_stack "
        "log_level logging_config max_log_len otlp_traces_endpoint "
        "per_request_spec_decode_metrics profiler_config show_hidden_metrics_for_version "
        "uvicorn_log_level",
    ),
    (
        "Listening: addresses, keys, headers, formats of answers.",
        "allow_credentials allowed_headers allowed_methods allowed_origins disable_fastapi_docs "
        "enable_offline_docs enable_request_id_headers enable_ssl_refresh "
        "enable_tokenizer_info_endpoint h11_max_header_count h11_max_incomplete_event_size host "
        "middleware port response_role return_tokens_as_token_ids root_path "
        "sse_keep_alive_interval ssl_ca_certs ssl_cert_reqs ssl_certfile ssl_ciphers "
        "ssl_keyfile uds",
    ),
    (
        "Chats: how messages become a prompt, which is a prompt like any other.",
        "anthropic_disabled_thinking_effort chat_template chat_template_content_format "
        "cohere_format cohere_is_reasoning_model default_chat_template_kwargs "
        "prompt_token_offsets trust_request_chat_template",
    ),
    (
        "Watermarks of a request: --watermark-config is refused.",
        "watermarking",
    ),
    (
        "vLLM's own notes on a request.",
        "_all_stop_token_ids _bad_words_token_ids _eos_token_id _watermarking_skipped "
        "output_text_buffer_length skip_clone",
    ),
)
