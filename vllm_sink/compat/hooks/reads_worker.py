"""Attributes that are read of the workers and of both model runners."""

from __future__ import annotations

from vllm_sink.compat.hooks.hook import reads

_RUNNER_V1 = "vllm.v1.worker.gpu_model_runner:GPUModelRunner"
_RUNNER_V2 = "vllm.v1.worker.gpu.model_runner:GPUModelRunner"
_STATES_V2 = "vllm.v1.worker.gpu.states:RequestState"

READS = (
    *reads(
        _RUNNER_V1,
        "a stream's lists and positions (V1 runner)",
        "requests",
        "input_batch",
        "positions",
        "sampler",
        "discard_request_mask",
        "attn_groups",
        "get_model",
        "device",
    ),
    *reads(
        "vllm.v1.worker.gpu_input_batch:CachedRequestState",
        "a stream's lists (V1 runner)",
        "prompt_token_ids",
        "num_prompt_tokens",
        "output_token_ids",
        "num_computed_tokens",
        "block_ids",
        "sampling_params",
        "generator",
    ),
    *reads(
        "vllm.v1.worker.gpu_input_batch:InputBatch",
        "a rolled stream's row is filled again, and the request of each row (V1 runner)",
        "req_ids",
        "generators",
        "vocab_size",
        "remove_request",
        "block_table",
    ),
    *reads(
        "vllm.v1.worker.block_table:MultiGroupBlockTable",
        "null blocks for a warm-up (V1 runner)",
        "__getitem__",
    ),
    *reads(
        "vllm.v1.worker.block_table:BlockTable",
        "null blocks for a warm-up (V1 runner)",
        "get_device_tensor",
    ),
    *reads("vllm.v1.utils:CpuGpuBuffer", "a mask that is read on the host", "np"),
    *reads(
        "vllm.v1.sample.metadata:SamplingMetadata",
        "penalties count tokens that have rolled out (V1 runner)",
        "no_penalties",
        "prompt_token_ids",
        "repetition_penalties",
        "frequency_penalties",
        "presence_penalties",
    ),
    *reads(
        "vllm.v1.worker.utils:AttentionGroup",
        "metadata builders get a batch's sinks",
        "metadata_builders",
    ),
    *reads(
        "vllm.v1.worker.gpu_worker:Worker",
        "a worker's steps, and what is done before and after",
        "vllm_config",
        "model_config",
        "cache_config",
        "model_runner",
        "use_v2_model_runner",
    ),
    *reads(
        "vllm.model_executor.layers.attention.attention:Attention",
        "a layer is given its rotary module, and its cache is written",
        "impl",
        "head_size",
        "kv_cache",
    ),
    *reads(
        "vllm.model_executor.layers.rotary_embedding.base:RotaryEmbedding",
        "the frequencies of a model, whose angles are then exact at any index",
        "_compute_inv_freq",
        "base",
        "head_size",
        "is_neox_style",
    ),
    *reads(
        "vllm.model_executor.layers.rotary_embedding:LinearScalingRotaryEmbedding",
        "the frequencies of a model",
        "_compute_inv_freq",
        "scaling_factors",
    ),
    *reads(
        "vllm.model_executor.layers.rotary_embedding:YaRNScalingRotaryEmbedding",
        "the frequencies of a model, and its amplitude",
        "_compute_inv_freq",
        "scaling_factor",
        "mscale",
    ),
    *reads(
        _RUNNER_V2,
        "a stream's tables (V2 runner)",
        "req_states",
        "block_tables",
        "model_state",
        "sampler",
        "max_num_reqs",
        "attn_groups",
        "get_model",
        "device",
    ),
    *reads(
        "vllm.v1.worker.gpu.input_batch:InputBatch",
        "the rows of a step (V2 runner)",
        "idx_mapping_np",
        "num_scheduled_tokens",
        "positions",
    ),
    *reads(
        "vllm.v1.worker.gpu.block_table:BlockTables",
        "a rolled stream's blocks, and null blocks for a warm-up (V2 runner)",
        "append_block_ids",
        "get_dummy_block_tables",
    ),
    *reads(
        "vllm.v1.worker.gpu.buffer_utils:StagedWriteTensor",
        "a row is overwritten in the order of the steps (V2 runner)",
        "stage_write",
        "stage_write_elem",
    ),
    *reads(
        "vllm.v1.worker.gpu.buffer_utils:UvaBackedTensor",
        "a row is overwritten (V2 runner)",
        "np",
    ),
    *reads(
        "vllm.v1.worker.gpu.sample.sampler:Sampler",
        "parts of the sampler that depend on a prompt's length (V2 runner); in 0.29 the two below "
        "are attributes",
        "logits_processors",
        optional=True,
    ),
    *reads(
        "vllm.v1.worker.gpu.sample.logit_bias:LogitBiasState",
        "min_tokens are counted from the prompt's end, which moves as it is fed (V2 runner)",
        "min_lens",
    ),
    *reads(
        "vllm.v1.worker.gpu.sample.penalties:PenaltiesState",
        "penalties are for the whole prompt, as it is fed (V2 runner)",
        "prompt_bin_mask",
        "use_penalty",
    ),
    *reads(
        _STATES_V2,
        "a stream's tables (V2 runner)",
        "prompt_len",
        "prefill_len",
        "total_len",
        "all_token_ids",
        "num_computed_tokens",
        "num_computed_tokens_np",
        "num_computed_prefill_tokens",
        "req_id_to_index",
        "apply_staged_writes",
    ),
)
