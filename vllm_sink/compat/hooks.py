"""Every place where this package leans on more of vLLM than vLLM promises, and why.

Four kinds. ``wraps``: a function of vLLM's is replaced by one that calls it. ``overrides``: a
subclass given to vLLM by one of its own settings replaces a method of its base; which ones, its
source says (``@override``). ``reads``: an attribute that no interface promises. ``imports``: a name
that this package imports; again, its own source says which.

A target is ``module:Class.name``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["wraps", "overrides", "reads", "imports"]


@dataclass(frozen=True)
class Hook:
    """One place.

    Attributes:
        kind: see above.
        target: ``module:Class.name`` of vLLM.
        why: what it is for, and why no interface of vLLM does it.
        parameters: names that the hook passes or reads.
        optional: a vLLM without it lacks the feature that the hook is about, so nothing is to do.
    """

    kind: Kind
    target: str
    why: str
    parameters: tuple[str, ...] = ()
    optional: bool = False

    @property
    def module(self) -> str:
        return self.target.partition(":")[0]

    @property
    def qualname(self) -> str:
        return self.target.partition(":")[2]


_ARGS = "vllm.engine.arg_utils:EngineArgs"
_RENDERER = "vllm.renderers.online_renderer:OnlineRenderer"
_CHAT = "vllm.entrypoints.openai.chat_completion.serving:OpenAIServingChat"
_STATE = "vllm.v1.engine.output_processor:RequestState"
_SCHEDULER = "vllm.v1.core.sched.scheduler:Scheduler"
_REQUEST = "vllm.v1.request:Request"
_SPIN = "vllm.distributed.device_communicators.shm_broadcast:SpinCondition"
_RUNNER_V1 = "vllm.v1.worker.gpu_model_runner:GPUModelRunner"
_RUNNER_V2 = "vllm.v1.worker.gpu.model_runner:GPUModelRunner"
_STATES_V2 = "vllm.v1.worker.gpu.states:RequestState"
_MODEL_STATE_V2 = "vllm.v1.worker.gpu.model_states.default:DefaultModelState"

WRAPS = (
    Hook("wraps", f"{_ARGS}.add_cli_args", "a plugin cannot add a flag", ("parser",)),
    Hook("wraps", f"{_ARGS}.from_cli_args", "a plugin cannot read a flag", ("args",)),
    Hook(
        "wraps",
        f"{_ARGS}.create_engine_config",
        "the policy's numbers depend on vLLM's reading of the model, and settings follow from them",
    ),
    Hook(
        "wraps",
        "vllm.v1.engine.input_processor:InputProcessor.process_inputs",
        "the one place that has a request's parameters and its prompt's length; the hook for "
        "parameters (LogitsProcessor.validate_params) does not see the prompt",
        ("request_id", "prompt"),
    ),
    Hook(
        "wraps",
        f"{_RENDERER}.preprocess_chat",
        "the one place where a chat's messages, its template and its tokens meet, for "
        '"sink_tokens": "system"',
        ("request", "messages"),
    ),
    Hook(
        "wraps",
        "vllm.entrypoints.generate.beam_search.online:BeamSearchOnlineMixin.beam_search",
        "beams end where max_model_len does, which a stream has none of",
        ("prompt", "request_id", "params"),
    ),
    Hook(
        "wraps",
        "vllm.entrypoints.openai.models.serving:OpenAIModelRegistry.show_available_models",
        "max_model_len is what clients are told of a request's length, and a stream has none",
    ),
    Hook(
        "wraps",
        "vllm.entrypoints.serve.tokenize.serving:ServingTokenization.create_tokenize",
        "the same, where a client counts its prompt's tokens",
    ),
    Hook(
        "wraps",
        "vllm.v1.engine.async_llm:AsyncLLM.__init__",
        "to add a stat logger, and since max_model_len is two things, the size of buffers and the "
        "longest request: the front end gets a config of its own, with the second",
        ("vllm_config", "log_stats", "stat_loggers"),
    ),
    Hook(
        "wraps",
        "vllm.v1.engine.async_llm:AsyncLLM.add_request",
        "where every request of a server's enters, in the task that answers it: a tenant's limits, "
        "prompts that come piece by piece, and what the caller is told",
        ("request_id", "prompt", "params"),
    ),
    Hook(
        "wraps",
        "vllm.v1.engine.llm_engine:LLMEngine.add_request",
        "a request that was made by hand has passed no check",
        ("request_id", "prompt", "params"),
    ),
    Hook(
        "wraps",
        "vllm.v1.engine.core:EngineCoreRequest",
        "what the server says of a request travels in a field of its own, since a client can write "
        "extra_args",
    ),
    Hook(
        "wraps",
        "vllm.v1.request:Request.from_engine_core_request",
        "the request of the scheduler takes over those fields",
        ("request",),
    ),
    Hook(
        "wraps",
        "vllm.v1.engine.core:EngineCore.add_request",
        "a request that cannot be added ends the engine, and every stream with it",
        ("request",),
    ),
    Hook(
        "wraps",
        "vllm.v1.engine.async_llm:AsyncLLM.shutdown",
        "streams are told why they end before their engine does; --shutdown-timeout kills it "
        "under them",
    ),
    Hook(
        "wraps",
        "vllm.v1.engine.output_processor:OutputProcessor.add_request",
        "where an answer becomes known, and is counted as its tenant's",
        ("request",),
    ),
    Hook(
        "wraps",
        "vllm.v1.engine.output_processor:OutputProcessor.process_outputs",
        "what waits for a client that does not read grows for as long as its request lives; here "
        "it can be aborted",
        ("engine_core_outputs",),
    ),
    Hook(
        "wraps",
        "vllm.v1.engine.llm_engine:LLMEngine.__init__",
        "as AsyncLLM.__init__",
        ("vllm_config", "log_stats", "stat_loggers"),
    ),
    Hook(
        "wraps",
        f"{_STATE}.make_request_output",
        "what has been streamed is kept until the request ends, though nothing reads it again; "
        "there is no hook between output and queue",
    ),
    Hook(
        "wraps",
        f"{_STATE}._weight_version_spans",
        "spans are told in indices of the whole answer",
        optional=True,
    ),
    Hook(
        "wraps",
        "vllm.v1.engine.detokenizer:IncrementalDetokenizer.from_new_request",
        "vLLM's detokenizers hold text that ends in U+FFFD, repeat a prompt that does, and decode "
        "skipped tokens again at every step; a plugin cannot name another",
        ("tokenizer", "request"),
    ),
    Hook(
        "wraps",
        f"{_SPIN}.record_read",
        "a reader that never idles leaves its socket unread, which keeps 41 bytes for each message",
    ),
    Hook(
        "wraps",
        f"{_CHAT}.chat_completion_stream_generator",
        "a streamed chat is appended, piece by piece, to a copy that only the log of outputs "
        "reads; the copy is a local variable",
        ("request", "result_generator"),
    ),
    Hook(
        "wraps",
        f"{_RUNNER_V1}._prepare_inputs",
        "between the slots of a step and its forward pass a stream's base is added to its "
        "positions (V1 runner)",
        ("scheduler_output", "num_scheduled_tokens"),
    ),
    Hook(
        "wraps",
        f"{_MODEL_STATE_V2}.prepare_attn",
        "the same (V2 runner)",
        ("input_batch",),
    ),
    Hook(
        "wraps",
        f"{_MODEL_STATE_V2}.add_request",
        "a row of the V2 runner's tables is told its request's sinks and base",
        ("req_index", "new_req_data"),
    ),
    Hook(
        "wraps",
        "vllm.v1.sample.sampler:Sampler.apply_penalties",
        "penalties count tokens that have rolled out of the V1 runner's lists",
        ("logits", "sampling_metadata", "output_token_ids"),
    ),
    Hook(
        "wraps",
        "vllm.v1.metrics.stats:SchedulerStats",
        "carries statistics from the engine core to the front end, without a place for a plugin's",
    ),
)

#: Which class of this package overrides which of vLLM's, and the setting that gives it to vLLM.
OVERRIDES = (
    ("vllm_sink.engine.rollover:RollingStreams", _SCHEDULER, "scheduler_cls"),
    ("vllm_sink.engine.scheduler:StreamScheduling", _SCHEDULER, "scheduler_cls"),
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


def _reads(owner: str, why: str, *names: str, optional: bool = False) -> tuple[Hook, ...]:
    return tuple(Hook("reads", f"{owner}.{name}", why, optional=optional) for name in names)


READS = (
    *_reads(
        _SCHEDULER,
        "streams roll between two steps, and come before other requests",
        "running",
        "waiting",
        "policy",
        "scheduler_config",
        "max_num_active_reqs",
        "num_sampled_tokens_per_step",
        "_pause_state",
        "_request_blocks_can_be_freed",
        "requests",
        "kv_cache_manager",
        "max_model_len",
        "max_num_scheduled_tokens",
        "prev_step_scheduled_req_ids",
        "block_size",
        "hash_block_size",
        "log_stats",
        "vllm_config",
        "cache_config",
    ),
    *_reads(
        "vllm.v1.core.kv_cache_manager:KVCacheManager",
        "the way to the one manager of blocks",
        "coordinator",
        "block_pool",
    ),
    *_reads(
        "vllm.v1.core.kv_cache_coordinator:KVCacheCoordinator",
        "the way to the one manager of blocks",
        "single_type_managers",
    ),
    *_reads(
        _REQUEST,
        "a rollover cuts a stream's lists",
        "_all_token_ids",
        "_output_token_ids",
        "_block_hasher",
        "block_hashes",
        "max_tokens",
        "num_computed_tokens",
        "num_in_flight_tokens",
        "num_output_placeholders",
        "num_prompt_tokens",
        "prefill_stats",
        "prompt_token_ids",
        "update_block_hashes",
        "request_id",
        "sampling_params",
        "all_token_ids",
        "num_tokens",
        "num_output_tokens",
        "num_preemptions",
    ),
    *_reads(
        _SCHEDULER,
        "a request that could not be added is forgotten",
        "finish_requests",
    ),
    *_reads(_SCHEDULER, "what is not free yet", "deferred_frees", optional=True),
    *_reads(
        "vllm.v1.request:RequestStatus",
        "a request that could not be added, or waited too long, ends",
        "FINISHED_ABORTED",
        "FINISHED_ERROR",
        "PREEMPTED",
    ),
    *_reads(
        "vllm.v1.core.sched.interface:PauseState", "while paused nobody waits too long", "UNPAUSED"
    ),
    *_reads(
        "vllm.v1.core.sched.request_queue:SchedulingPolicy",
        "whether priorities come before turns",
        "PRIORITY",
    ),
    *_reads(
        _REQUEST,
        "whose turn it is, and whom to tell",
        "arrival_time",
        "priority",
        "status",
        "client_index",
    ),
    *_reads("vllm.v1.engine:EngineCoreOutputs", "a refusal goes to its client", "outputs"),
    *_reads("vllm.v1.engine:FinishReason", "a refusal is an error", "ERROR"),
    *_reads("vllm.v1.engine.core:EngineCoreProc", "a refusal goes to its client", "output_queue"),
    Hook("reads", "vllm.v1.engine.core:EngineCoreProc", "where a patched vLLM names its requests"),
    *_reads(
        "vllm.usage.usage_lib:UsageContext",
        "the doctor examines a server's config",
        "OPENAI_API_SERVER",
    ),
    *_reads(
        "vllm.v1.metrics.stats:PrefillStats",
        "statistics are of the whole prompt, of which a segment holds a part",
        "num_prompt_tokens",
        "num_computed_tokens",
    ),
    *_reads(
        "vllm.v1.core.sched.output:SchedulerOutput",
        "who joins a step, who comes back and who has gone",
        "scheduled_new_reqs",
        "scheduled_cached_reqs",
        "finished_req_ids",
        "preempted_req_ids",
    ),
    *_reads(
        "vllm.v1.core.sched.output:NewRequestData",
        "a stream's sinks and base, for a worker that meets it",
        "req_id",
        "sampling_params",
    ),
    *_reads(
        "vllm.v1.core.sched.output:CachedRequestData",
        "a stream that comes back starts again",
        "resumed_req_ids",
    ),
    *_reads(
        "vllm.v1.core.single_type_kv_cache_manager:SingleTypeKVCacheManager",
        "which block is whose",
        "block_pool",
        "req_to_blocks",
        "num_cached_block",
        "_null_block",
        "enable_caching",
        "kv_cache_spec",
        "block_size",
    ),
    *_reads(
        "vllm.v1.core.block_pool:BlockPool",
        "blocks between sinks and window return to it, and a hit's are taken",
        "num_gpu_blocks",
        "null_block",
        "get_num_free_blocks",
        "get_cached_block",
        "touch",
        "free_blocks",
    ),
    *_reads(
        "vllm.v1.core.kv_cache_utils:KVCacheBlock",
        "whether a block is recycled, and who else holds it",
        "block_id",
        "is_null",
        "ref_cnt",
    ),
    *_reads(
        "vllm.v1.kv_cache_interface:AttentionSpec",
        "a layer's page, as the model has it",
        "block_size",
        "num_kv_heads",
        "head_size",
        "head_size_v",
        "dtype",
        "kv_quant_mode",
        "page_size_bytes",
    ),
    *_reads(
        "vllm.v1.kv_cache_spec_registry:KVCacheSpecRegistry",
        "a spec of one's own; it fills itself only while it is empty",
        "_ensure_registered",
        "register",
    ),
    *_reads(
        _STATE,
        "what has been streamed is dropped",
        "detokenizer",
        "logprobs_processor",
        "output_kind",
        "sent_tokens_offset",
        "stream_interval",
        "queue",
        "parent_req",
        "external_req_id",
    ),
    *_reads(
        _STATE,
        "spans are told in indices of the whole answer",
        "weight_version_starts",
        optional=True,
    ),
    *_reads(
        "vllm.v1.engine.logprobs:LogprobsProcessor",
        "what has been streamed is dropped",
        "logprobs",
    ),
    *_reads(
        "vllm.v1.engine.output_processor:RequestOutputCollector",
        "what waits for a client",
        "aggregate",
        "output",
    ),
    *_reads(
        "vllm.v1.engine.output_processor:OutputProcessor",
        "whose client does not read",
        "abort_requests",
        "request_states",
    ),
    *_reads(
        "vllm.v1.engine.output_processor:OutputProcessorOutput",
        "streams that nobody reads are aborted with those that vLLM aborts",
        "reqs_to_abort",
    ),
    *_reads(
        "vllm.v1.engine:EngineCoreOutput",
        "whose client does not read, and what was refused",
        "request_id",
        "finish_reason",
        "stop_reason",
    ),
    *_reads(
        "vllm.v1.engine:EngineCoreRequest",
        "what a request asks for, and which of its fields may be large",
        "request_id",
        "sampling_params",
        "prompt_token_ids",
        "prompt_embeds",
        "mm_features",
    ),
    *_reads(
        "vllm.v1.engine:EngineCoreRequest",
        "it may be large",
        "prompt_is_token_ids",
        optional=True,
    ),
    *_reads(
        "vllm.v1.serial_utils:MsgpackEncoder",
        "whether the engine core can read a request is tried before it is sent",
        "encode",
    ),
    *_reads(
        "vllm.v1.serial_utils:MsgpackDecoder",
        "whether the engine core can read a request is tried before it is sent",
        "decode",
    ),
    *_reads(
        "vllm.v1.engine.async_llm:AsyncLLM",
        "the front end is told how long a stream may be",
        "vllm_config",
        "model_config",
        "input_processor",
        "renderer",
    ),
    *_reads(
        "vllm.v1.engine.llm_engine:LLMEngine",
        "the front end is told how long a stream may be",
        "vllm_config",
        "model_config",
        "input_processor",
        "renderer",
    ),
    *_reads(
        "vllm.v1.engine.input_processor:InputProcessor",
        "the front end is told how long a stream may be",
        "vllm_config",
        "model_config",
        "renderer",
    ),
    *_reads(
        "vllm.renderers.base:BaseRenderer",
        "the front end is told how long a stream may be",
        "model_config",
        "config",
    ),
    *_reads(
        _RENDERER,
        "whose policy a chat is under",
        "renderer",
    ),
    *_reads(
        "vllm.entrypoints.generate.beam_search.online:BeamSearchOnlineMixin",
        "whose policy beams are under",
        "engine_client",
    ),
    *_reads(
        "vllm.exceptions:GracefulHTTPError",
        "a refusal with a status of its own, on its way through Ray",
        "message",
        "http_status",
    ),
    *_reads(
        _CHAT, "whether somebody reads what has been streamed", "parser_cls", "enable_log_outputs"
    ),
    *_reads(
        "vllm.v1.engine.detokenizer:BaseIncrementalDetokenizer",
        "what has been streamed is dropped",
        "token_ids",
        "output_text",
        "_last_output_text_offset",
        "min_tokens",
        "stop",
        "num_output_tokens",
    ),
    *_reads(_SPIN, "its socket is looked at now and then", "local_notify_socket"),
    *_reads(
        "vllm.v1.engine.detokenizer:FastIncrementalDetokenizer",
        "which tokens are skipped",
        "skip_special_tokens",
        "tokenizer",
    ),
    *_reads(
        "vllm.v1.engine.detokenizer:SlowIncrementalDetokenizer",
        "how tokens are written",
        "skip_special_tokens",
        "spaces_between_special_tokens",
        "tokenizer",
    ),
    *_reads(
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
    *_reads(
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
    *_reads(
        "vllm.v1.worker.gpu_input_batch:InputBatch",
        "a rolled stream's row is filled anew, and whose each row is (V1 runner)",
        "req_ids",
        "generators",
        "vocab_size",
        "remove_request",
        "block_table",
    ),
    *_reads(
        "vllm.v1.worker.block_table:MultiGroupBlockTable",
        "null blocks for a warm-up (V1 runner)",
        "__getitem__",
    ),
    *_reads(
        "vllm.v1.worker.block_table:BlockTable",
        "null blocks for a warm-up (V1 runner)",
        "get_device_tensor",
    ),
    *_reads("vllm.v1.utils:CpuGpuBuffer", "a mask that is read on the host", "np"),
    *_reads(
        "vllm.v1.sample.metadata:SamplingMetadata",
        "penalties count tokens that have rolled out (V1 runner)",
        "no_penalties",
        "prompt_token_ids",
        "repetition_penalties",
        "frequency_penalties",
        "presence_penalties",
    ),
    *_reads(
        "vllm.v1.worker.utils:AttentionGroup",
        "whoever builds metadata is told a batch's sinks",
        "metadata_builders",
    ),
    *_reads(
        "vllm.v1.worker.gpu_worker:Worker",
        "what is done before and after each of its steps",
        "vllm_config",
        "model_config",
        "cache_config",
        "model_runner",
        "use_v2_model_runner",
    ),
    *_reads(
        "vllm.model_executor.layers.attention.attention:Attention",
        "a layer is given its rotary module, and its cache is written",
        "impl",
        "head_size",
        "kv_cache",
    ),
    *_reads(
        "vllm.model_executor.layers.rotary_embedding.base:RotaryEmbedding",
        "the frequencies of a model, whose angles are then exact at any index",
        "_compute_inv_freq",
        "base",
        "head_size",
        "is_neox_style",
    ),
    *_reads(
        "vllm.model_executor.layers.rotary_embedding:LinearScalingRotaryEmbedding",
        "the frequencies of a model",
        "_compute_inv_freq",
        "scaling_factors",
    ),
    *_reads(
        "vllm.model_executor.layers.rotary_embedding:YaRNScalingRotaryEmbedding",
        "the frequencies of a model, and its amplitude",
        "_compute_inv_freq",
        "scaling_factor",
        "mscale",
    ),
    *_reads(
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
    *_reads(
        "vllm.v1.worker.gpu.input_batch:InputBatch",
        "which rows a step is about (V2 runner)",
        "idx_mapping_np",
        "num_scheduled_tokens",
        "positions",
    ),
    *_reads(
        "vllm.v1.worker.gpu.block_table:BlockTables",
        "a rolled stream's blocks, and null blocks for a warm-up (V2 runner)",
        "append_block_ids",
        "get_dummy_block_tables",
    ),
    *_reads(
        "vllm.v1.worker.gpu.buffer_utils:StagedWriteTensor",
        "a row is written over in the order of the steps (V2 runner)",
        "stage_write",
        "stage_write_elem",
    ),
    *_reads(
        "vllm.v1.worker.gpu.buffer_utils:UvaBackedTensor",
        "a row is written over (V2 runner)",
        "np",
    ),
    *_reads(
        "vllm.v1.worker.gpu.sample.sampler:Sampler",
        "what of the sampler depends on a prompt's length (V2 runner); in 0.29 the two below are "
        "attributes of their own",
        "logits_processors",
        optional=True,
    ),
    *_reads(
        "vllm.v1.worker.gpu.sample.logit_bias:LogitBiasState",
        "min_tokens are counted from the prompt's end, which moves as it is fed (V2 runner)",
        "min_lens",
    ),
    *_reads(
        "vllm.v1.worker.gpu.sample.penalties:PenaltiesState",
        "penalties are for the whole prompt, as it is fed (V2 runner)",
        "prompt_bin_mask",
        "use_penalty",
    ),
    *_reads(
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
    *_reads(
        "vllm.v1.attention.backend:CommonAttentionMetadata",
        "what a step's rows are",
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
    *_reads(
        "vllm.v1.attention.backends.registry:AttentionBackendEnum",
        "where the backend is registered, and on a CPU only while a model is built",
        "CUSTOM",
        "CPU_ATTN",
        "clear_override",
    ),
    *_reads(
        "vllm.v1.attention.backend:AttentionCGSupport",
        "which steps may be CUDA graphs",
        "NEVER",
        "UNIFORM_SINGLE_TOKEN_DECODE",
    ),
    *_reads("vllm.v1.attention.backend:AttentionType", "layers that have a stream", "DECODER"),
    *_reads("vllm.v1.kv_cache_interface:KVCacheLayout", "a slot is one piece of memory", "LBNHC"),
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
    *_reads(
        "vllm.config.scheduler:SchedulerConfig",
        "how much is scheduled at once, and by whom",
        "async_scheduling",
        "scheduler_cls",
        "max_num_seqs",
        "max_num_batched_tokens",
    ),
    *_reads(
        "vllm.config.vllm:VllmConfig",
        "a step in flight still reads its window",
        "max_in_flight_tokens",
        "use_v2_model_runner",
    ),
    *_reads(
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
    *_reads(
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
    *_reads("vllm.config.model:ModelConfig", "what is refused", "is_diffusion", optional=True),
    *_reads("vllm.config.aux_output:AuxOutputConfig", "what is refused", "enabled", optional=True),
    *_reads(
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
    *_reads(
        "vllm.config.parallel:ParallelConfig",
        "which worker, and what is refused",
        "worker_cls",
        "data_parallel_size",
        "decode_context_parallel_size",
        "prefill_context_parallel_size",
        "pipeline_parallel_size",
    ),
    *_reads(
        "vllm.config.attention:AttentionConfig",
        "the backend, and the memory of its graphs",
        "backend",
        "flash_attn_max_num_splits_for_cuda_graph",
    ),
    *_reads(
        "vllm.config.compilation:CompilationConfig",
        "how large a step in a CUDA graph is",
        "max_cudagraph_capture_size",
        "cudagraph_mode",
    ),
    *_reads(
        "vllm.config.compilation:CUDAGraphMode",
        "whether attention is in a CUDA graph",
        "has_full_cudagraphs",
    ),
    *_reads(
        "vllm.config.kv_events:KVEventsConfig",
        "what is refused",
        "enable_kv_cache_events",
    ),
    *_reads(
        _ARGS,
        "vLLM's reading of a model, before its numbers are chosen",
        "create_model_config",
    ),
)


_REPLICA_RAY = "ray.serve._private.replica:Replica"

#: The same in Ray, for ``vllm_sink.serving.ray``: what is replaced of it, by a subclass of its
#: classes or at run time.
RAY_WRAPS = (
    Hook(
        "wraps",
        f"{_REPLICA_RAY}.perform_graceful_shutdown",
        "a replica's own code is told nothing of its end before all requests have ended",
    ),
    Hook(
        "overrides",
        "ray.serve.llm.deployment:LLMServer._run_request",
        "where every request of a replica's comes in, with its headers",
        ("request", "engine_method", "batch_output_stream", "raw_request_info"),
    ),
    Hook(
        "overrides",
        "ray.serve.llm.deployment:LLMServer._get_default_engine_class",
        "an engine whose front end counts and checks streams",
    ),
    Hook(
        "overrides",
        "ray.serve.llm.ingress:OpenAiIngress._get_response",
        "a stream whose replica dies ends with an error event",
    ),
    Hook(
        "overrides",
        "ray.llm._internal.serve.engines.vllm.vllm_engine:VLLMEngine._start_async_llm_engine",
        "the config is made in another process than the front end",
        ("vllm_engine_args", "vllm_engine_config", "placement_group"),
    ),
)

RAY_READS = (
    *_reads(_REPLICA_RAY, "how long streams may take to finish", "_deployment_config"),
    *_reads(
        "ray.serve._private.config:DeploymentConfig",
        "how long streams may take to finish",
        "graceful_shutdown_timeout_s",
    ),
    *_reads(
        "ray.llm._internal.serve.core.protocol:RawRequestInfo",
        "who sent a request",
        "headers",
    ),
    *_reads(
        "ray.serve.llm.deployment:LLMServer",
        "what a replica needs of the cluster",
        "get_deployment_options",
    ),
    *_reads(
        "ray.serve.llm.ingress:OpenAiIngress",
        "what the ingress needs of the cluster",
        "get_deployment_options",
    ),
    *_reads(
        "ray.serve.llm:LLMServingArgs",
        "what is served",
        "llm_configs",
        "ingress_deployment_config",
    ),
    *_reads(
        "ray.serve.llm:LLMConfig",
        "a policy, and defaults for what has none",
        "engine_kwargs",
        "deployment_config",
        "model_id",
    ),
    *_reads(
        "ray.serve.config:AutoscalingContext",
        "how many replicas the load asks for",
        "aggregated_metrics",
        "running_replicas",
        "target_num_replicas",
        "total_queued_requests",
    ),
)

#: Classes whose attributes vLLM does promise, and why. Of those in ``vllm.config`` only fields are
#: meant: what else is asked of a config is listed above.
PUBLIC = {
    "vllm.config": "a field is a setting, and most are a flag of vllm serve",
    "vllm.engine.arg_utils:EngineArgs": "a field is a flag of vllm serve",
    "vllm.engine.arg_utils:AsyncEngineArgs": "a field is a flag of vllm serve",
    "vllm.sampling_params:SamplingParams": "a user writes it",
    "vllm.sampling_params:BeamSearchParams": "a user writes it",
    "vllm.sampling_params:RequestOutputKind": "a user chooses one",
    "vllm.outputs:RequestOutput": "a user is given it",
    "vllm.outputs:CompletionOutput": "a user is given it",
    "vllm.outputs:WeightVersionSpan": "a user is given it",
    "vllm.platforms.interface:Platform": "what a plugin may ask of the platform",
    "vllm.utils.argparse_utils:FlexibleArgumentParser": "it is an argparse.ArgumentParser",
    "vllm.v1.engine:EngineCoreRequest": "copied whole, whichever fields it has",
}
