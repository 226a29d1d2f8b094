"""What is installed in vLLM at run time, in this order.

Of several wrappers of one function the later one is the outer one and is called first.
``compat.install`` installs the rows of this table that belong to its process, and nothing else.
"""

from __future__ import annotations

from vllm_sink.compat.hooks.hook import Installed, Place

_ARGS = "vllm.engine.arg_utils:EngineArgs"
_ASYNC = "vllm.v1.engine.async_llm:AsyncLLM"
_SYNC = "vllm.v1.engine.llm_engine:LLMEngine"
_PROCESSOR = "vllm.v1.engine.output_processor:OutputProcessor"
_STATE = "vllm.v1.engine.output_processor:RequestState"
_RUNNER_V1 = "vllm.v1.worker.gpu_model_runner:GPUModelRunner"
_MODEL_STATE_V2 = "vllm.v1.worker.gpu.model_states.default:DefaultModelState"

_RFC = "a plugin interface for it (vllm-project/vllm#19161)"
_RUNNER_PLUGINS = "vllm-project/vllm#39696: a place for plugins in a runner"


def _wrap(
    target: str,
    by: str,
    why: str,
    *parameters: str,
    places: tuple[Place, ...] = ("front end",),
    until: str = _RFC,
    on: str = "",
    optional: bool = False,
) -> Installed:
    return Installed(
        "wraps",
        target,
        why,
        parameters,
        optional,
        by=f"vllm_sink.{by}",
        places=places,
        until=until,
        on=on,
    )


# -- flags, and an engine's configuration ---------------------------------------------------------

_PLUGIN = (
    _wrap(
        f"{_ARGS}.add_cli_args",
        "startup.flags:with_flags",
        "a plugin cannot add a flag",
        "parser",
        places=("plugin",),
    ),
    _wrap(
        f"{_ARGS}.from_cli_args",
        "startup.flags:with_policy_from_flags",
        "a plugin cannot read a flag",
        "args",
        places=("plugin",),
    ),
    _wrap(
        f"{_ARGS}.create_engine_config",
        "startup.engine_config:with_policy",
        "the policy's numbers depend on vLLM's config of the model, and settings depend on them",
        places=("plugin",),
    ),
)

# -- a request enters -----------------------------------------------------------------------------

_REQUESTS = (
    _wrap(
        "vllm.v1.engine.input_processor:InputProcessor.process_inputs",
        "requests.entry:checked",
        "the one place that has a request's parameters and its prompt's length; the hook for "
        "parameters (LogitsProcessor.validate_params) does not see the prompt",
        "request_id",
        "prompt",
    ),
    _wrap(
        f"{_ASYNC}.add_request",
        "requests.entry:entered",
        "every request of a server enters here, in the task that answers it: checks a tenant's "
        "limits and streaming input, and reports refusals to the client",
        "request_id",
        "prompt",
        "params",
    ),
    _wrap(
        f"{_SYNC}.add_request",
        "requests.entry:entered_from_python",
        "a request that is built by hand has not been checked",
        "request_id",
        "prompt",
        "params",
    ),
    _wrap(
        f"{_PROCESSOR}.add_request",
        "tenancy.limits:count_answer",
        "an answer is registered here, and counted for its tenant",
        "request",
    ),
    _wrap(
        f"{_PROCESSOR}.add_request",
        "serving.core_refusals:remember_client",
        "which client waits for an answer, for refusals of the engine core",
        "request",
    ),
    _wrap(
        f"{_PROCESSOR}.add_request",
        "streaming.slow_client_abort:mark_streams",
        "which answers may grow without end",
        "request",
    ),
    _wrap(
        "vllm.renderers.online_renderer:OnlineRenderer.preprocess_chat",
        "serving.system_prompt:count_system_tokens",
        "the one place where a chat's messages, its template and its tokens meet, for "
        '"sink_tokens": "system"',
        "request",
        "messages",
    ),
)

# -- how long it may be ---------------------------------------------------------------------------

_LENGTHS = (
    _wrap(
        "vllm.entrypoints.generate.beam_search.online:BeamSearchOnlineMixin.beam_search",
        "streaming.beam_length:end_at_context",
        "beams end at max_model_len, which a stream does not have",
        "prompt",
        "request_id",
        "params",
    ),
    *(
        _wrap(
            f"{engine}.__init__",
            "streaming.front_end_max_len:separate_front_end_config",
            "max_model_len is two things, the size of buffers and the longest request: the front "
            "end gets a config of its own, with the second",
            "vllm_config",
        )
        for engine in (_ASYNC, _SYNC)
    ),
    _wrap(
        "vllm.entrypoints.openai.models.serving:OpenAIModelRegistry.show_available_models",
        "streaming.front_end_max_len:name_context",
        "clients see max_model_len as the maximum length of a request, and a stream has none",
    ),
    _wrap(
        "vllm.entrypoints.serve.tokenize.serving:ServingTokenization.create_tokenize",
        "streaming.front_end_max_len:name_context",
        "the same, where a client counts its prompt's tokens",
    ),
)

# -- an endless answer ----------------------------------------------------------------------------

_ANSWERS = (
    _wrap(
        f"{_STATE}.make_request_output",
        "streaming.output_trimming:trim_sent_output",
        "what has been streamed is kept until the request ends, though nothing reads it again; "
        "there is no hook between output and queue",
        until="RequestState drops what it has sent (RequestOutputKind.DELTA)",
    ),
    _wrap(
        f"{_STATE}._weight_version_spans",
        "streaming.output_trimming:count_trimmed_in_spans",
        "spans are in indices of the whole answer",
        optional=True,
        until="RequestState drops what it has sent (RequestOutputKind.DELTA)",
    ),
    _wrap(
        f"{_PROCESSOR}.process_outputs",
        "tenancy.limits:spend_tokens",
        "generated tokens are counted for their tenant",
        "engine_core_outputs",
    ),
    _wrap(
        f"{_PROCESSOR}.process_outputs",
        "streaming.slow_client_abort:abort_slow_clients",
        "output for a client that does not read grows for as long as its request lives; here it "
        "can be aborted",
        "engine_core_outputs",
        until="vLLM bounds the output that waits for a client",
    ),
    _wrap(
        f"{_PROCESSOR}.process_outputs",
        "serving.core_refusals:raise_refusals",
        "the engine core can end a request with an error, but not with an HTTP status",
        "engine_core_outputs",
    ),
    _wrap(
        f"{_ASYNC}.shutdown",
        "serving.drain:drain_first",
        "clients get the reason before the engine stops; --shutdown-timeout gives them none",
        until="vLLM's shutdown ends running requests with an error that says so",
    ),
    *(
        _wrap(
            f"{engine}.__init__",
            "metrics.stat_loggers:add_stat_logger",
            "a plugin cannot set vLLM's parameter stat_loggers for engines with a policy alone",
            "vllm_config",
            "log_stats",
            "stat_loggers",
        )
        for engine in (_ASYNC, _SYNC)
    ),
)

# -- the engine core ------------------------------------------------------------------------------

_CORE = (
    Installed(
        "adds",
        "vllm.v1.metrics.stats:SchedulerStats",
        "carries statistics from the engine core to the front end, without a field for plugins",
        by="vllm_sink.metrics.messages:StreamStats",
        places=("front end", "engine core"),
        until=_RFC,
        field="sink_stats",
    ),
    Installed(
        "replaces",
        "vllm.v1.engine.core:EngineCoreRequest",
        "the server's data on a request needs fields of its own, because a client can write "
        "extra_args",
        by="vllm_sink.requests.core_request:SinkRequest",
        places=("engine core",),
        until=_RFC,
    ),
    _wrap(
        "vllm.v1.request:Request.from_engine_core_request",
        "requests.core_request:carry_server_fields",
        "copies those fields to the scheduler's request",
        "request",
        places=("engine core",),
    ),
)

# -- faults of vLLM itself ------------------------------------------------------------------------

_FIXES = (
    _wrap(
        "vllm.v1.engine.core:EngineCore.add_request",
        "vllm_fixes.add_request_isolation:end_one_request",
        "a request that cannot be added ends the engine, and every stream with it",
        "request",
        places=("engine core",),
        until="EngineCoreProc reports an error of add_request to the request's client",
    ),
    _wrap(
        "vllm.v1.engine.detokenizer:IncrementalDetokenizer.from_new_request",
        "vllm_fixes.detokenizer:choose_detokenizer",
        "vLLM's detokenizers hold back text that ends in U+FFFD, repeat a prompt that does, and "
        "decode skipped tokens again at every step; a plugin cannot name another",
        "tokenizer",
        "request",
        until="vLLM's detokenizers decode each token once",
    ),
    _wrap(
        "vllm.distributed.device_communicators.shm_broadcast:SpinCondition.record_read",
        "vllm_fixes.zmq_notices:read_notices",
        "a reader that never idles leaves its socket unread, which keeps 41 bytes for each message",
        places=("engine core", "worker"),
        until="SpinCondition reads its socket while it is busy",
    ),
    _wrap(
        "vllm.entrypoints.openai.chat_completion.serving:OpenAIServingChat."
        "chat_completion_stream_generator",
        "vllm_fixes.chat_text_leak:stream_without_copy",
        "a streamed chat is appended, piece by piece, to a copy in a local variable that only the "
        "log of outputs reads",
        "request",
        "result_generator",
        until="the generator keeps no text where nothing reads it",
    ),
)

# -- the model runners ----------------------------------------------------------------------------

_V1 = "worker.v1_runner:V1RunnerTables"
_V2 = "worker.v2_runner:V2RunnerTables"

_RUNNERS = (
    _wrap(
        f"{_RUNNER_V1}._prepare_inputs",
        f"{_V1}.prepare_inputs",
        "between a step's slots and its forward pass, a stream's base is added to its positions",
        "scheduler_output",
        "num_scheduled_tokens",
        places=("V1 runner",),
        until=_RUNNER_PLUGINS,
    ),
    _wrap(
        "vllm.v1.sample.sampler:Sampler.apply_penalties",
        f"{_V1}.apply_penalties",
        "penalties count tokens that have rolled out of the V1 runner's lists",
        "logits",
        "sampling_metadata",
        "output_token_ids",
        places=("V1 runner",),
        until=_RUNNER_PLUGINS,
        on="sampler",
    ),
    _wrap(
        f"{_MODEL_STATE_V2}.add_request",
        f"{_V2}.add_request",
        "a row of the V2 runner's tables gets its request's sinks, window and base",
        "req_index",
        "new_req_data",
        places=("V2 runner",),
        until=_RUNNER_PLUGINS,
        on="model_state",
    ),
    _wrap(
        f"{_MODEL_STATE_V2}.prepare_attn",
        f"{_V2}.prepare_attn",
        "between a step's slots and its forward pass, a stream's base is added to its positions",
        "input_batch",
        places=("V2 runner",),
        until=_RUNNER_PLUGINS,
        on="model_state",
    ),
)

WRAPS = (*_PLUGIN, *_REQUESTS, *_LENGTHS, *_ANSWERS, *_CORE, *_FIXES, *_RUNNERS)
