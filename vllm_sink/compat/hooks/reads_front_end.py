"""Attributes that are read in front of the engine core."""

from __future__ import annotations

from vllm_sink.compat.hooks.hook import reads

_RENDERER = "vllm.renderers.online_renderer:OnlineRenderer"
_CHAT = "vllm.entrypoints.openai.chat_completion.serving:OpenAIServingChat"
_STATE = "vllm.v1.engine.output_processor:RequestState"
_SPIN = "vllm.distributed.device_communicators.shm_broadcast:SpinCondition"

READS = (
    *reads(
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
    *reads(
        _STATE,
        "spans are in indices of the whole answer",
        "weight_version_starts",
        optional=True,
    ),
    *reads(
        "vllm.v1.engine.logprobs:LogprobsProcessor",
        "what has been streamed is dropped",
        "logprobs",
    ),
    *reads(
        "vllm.v1.engine.output_processor:RequestOutputCollector",
        "output that waits for a client",
        "aggregate",
        "output",
    ),
    *reads(
        "vllm.v1.engine.output_processor:OutputProcessor",
        "requests whose client does not read",
        "abort_requests",
        "request_states",
    ),
    *reads(
        "vllm.v1.engine.output_processor:OutputProcessorOutput",
        "unread streams are aborted with the requests that vLLM aborts",
        "reqs_to_abort",
    ),
    *reads(
        "vllm.v1.engine:EngineCoreOutput",
        "requests whose client does not read, and refusals",
        "request_id",
        "finish_reason",
        "stop_reason",
    ),
    *reads(
        "vllm.v1.engine:EngineCoreRequest",
        "what a request asks for, and which of its fields may be large",
        "request_id",
        "sampling_params",
        "prompt_token_ids",
        "prompt_embeds",
        "mm_features",
    ),
    *reads(
        "vllm.v1.engine:EngineCoreRequest",
        "it may be large",
        "prompt_is_token_ids",
        optional=True,
    ),
    *reads(
        "vllm.v1.serial_utils:MsgpackEncoder",
        "whether the engine core can read a request is tried before it is sent",
        "encode",
    ),
    *reads(
        "vllm.v1.serial_utils:MsgpackDecoder",
        "whether the engine core can read a request is tried before it is sent",
        "decode",
    ),
    *reads(
        "vllm.v1.engine.async_llm:AsyncLLM",
        "the front end has the maximum length of a stream",
        "vllm_config",
        "model_config",
        "input_processor",
        "renderer",
    ),
    *reads(
        "vllm.v1.engine.llm_engine:LLMEngine",
        "the front end has the maximum length of a stream",
        "vllm_config",
        "model_config",
        "input_processor",
        "renderer",
    ),
    *reads(
        "vllm.v1.engine.input_processor:InputProcessor",
        "the front end has the maximum length of a stream",
        "vllm_config",
        "model_config",
        "renderer",
    ),
    *reads(
        "vllm.renderers.base:BaseRenderer",
        "the front end has the maximum length of a stream",
        "model_config",
        "config",
    ),
    *reads(
        _RENDERER,
        "the policy of a chat",
        "renderer",
    ),
    *reads(
        "vllm.entrypoints.generate.beam_search.online:BeamSearchOnlineMixin",
        "the policy of beams",
        "engine_client",
    ),
    *reads(
        "vllm.exceptions:GracefulHTTPError",
        "a refusal with a status of its own, on its way through Ray",
        "message",
        "http_status",
    ),
    *reads(_CHAT, "whether streamed text is read again", "parser_cls", "enable_log_outputs"),
    *reads(
        "vllm.v1.engine.detokenizer:BaseIncrementalDetokenizer",
        "what has been streamed is dropped",
        "token_ids",
        "output_text",
        "_last_output_text_offset",
        "min_tokens",
        "stop",
        "num_output_tokens",
    ),
    *reads(_SPIN, "its socket is read regularly", "local_notify_socket"),
    *reads(
        "vllm.v1.engine.detokenizer:FastIncrementalDetokenizer",
        "which tokens are skipped",
        "skip_special_tokens",
        "tokenizer",
    ),
    *reads(
        "vllm.v1.engine.detokenizer:SlowIncrementalDetokenizer",
        "how tokens become text",
        "skip_special_tokens",
        "spaces_between_special_tokens",
        "tokenizer",
    ),
)
