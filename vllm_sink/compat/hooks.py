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
        "vllm.v1.engine.async_llm:AsyncLLM.shutdown",
        "streams are told why they end before their engine does; --shutdown-timeout kills it "
        "under them",
    ),
    Hook(
        "wraps",
        "vllm.v1.engine.output_processor:OutputProcessor.add_request",
        "where a stream becomes known, and is told its tenant",
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
    ("vllm_sink.engine.stats:StreamReporting", _SCHEDULER, "scheduler_cls"),
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
        "vllm_sink.serving.detokenizer:WithDecodeStream",
        "vllm.v1.engine.detokenizer:FastIncrementalDetokenizer",
        "from_new_request",
    ),
    (
        "vllm_sink.serving.detokenizer:FastDetokenizer",
        "vllm.v1.engine.detokenizer:FastIncrementalDetokenizer",
        "from_new_request",
    ),
    (
        "vllm_sink.serving.detokenizer:SlowDetokenizer",
        "vllm.v1.engine.detokenizer:SlowIncrementalDetokenizer",
        "from_new_request",
    ),
)


def _reads(owner: str, why: str, *names: str) -> tuple[Hook, ...]:
    return tuple(Hook("reads", f"{owner}.{name}", why) for name in names)


READS = (
    *_reads(
        _SCHEDULER,
        "streams roll between two steps",
        "running",
        "requests",
        "kv_cache_manager",
        "max_model_len",
        "max_num_scheduled_tokens",
        "prev_step_scheduled_req_ids",
        "block_size",
        "hash_block_size",
        "log_stats",
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
    ),
    *_reads(
        "vllm.v1.core.single_type_kv_cache_manager:SingleTypeKVCacheManager",
        "which block is whose",
        "block_pool",
        "req_to_blocks",
        "num_cached_block",
        "_null_block",
        "enable_caching",
    ),
    *_reads(
        _STATE,
        "what has been streamed is dropped",
        "detokenizer",
        "logprobs_processor",
        "output_kind",
        "sent_tokens_offset",
        "stream_interval",
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
        _CHAT, "whether somebody reads what has been streamed", "parser_cls", "enable_log_outputs"
    ),
    *_reads(
        "vllm.v1.engine.detokenizer:BaseIncrementalDetokenizer",
        "what has been streamed is dropped",
        "token_ids",
        "output_text",
        "_last_output_text_offset",
        "min_tokens",
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
    ),
    *_reads(
        _RUNNER_V2,
        "a stream's tables (V2 runner)",
        "req_states",
        "block_tables",
        "model_state",
        "sampler",
        "max_num_reqs",
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
    ),
    *_reads(
        "vllm.config.scheduler:SchedulerConfig",
        "admission asks what a whole stream may need",
        "scheduler_reserve_full_isl",
    ),
    *_reads(
        "vllm.config.vllm:VllmConfig",
        "a step in flight still reads its window",
        "max_in_flight_tokens",
        "use_v2_model_runner",
    ),
)


#: Classes whose attributes vLLM does promise: what its users write and are given.
PUBLIC: dict[str, str] = {}
