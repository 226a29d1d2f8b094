"""Which of vLLM's features a policy holds for, and which are refused: one table.

A row of ``FEATURES`` is held by a named test or is refused with the reason; ``NO_BEARING`` groups
the settings that a stream does not depend on. Together they name every field of vLLM's engine and
server arguments, of its sampling parameters and of its prompts (``tests/unit/test_features.py``
walks them), so that a field that a new vLLM brings is looked at before it is let through.

``docs/features.md`` is written by ``python -m vllm_sink.startup.features``.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from vllm_sink.errors import UnsupportedError

#: The reason where there is no other.
NOT_HELD = "not held against the reference yet"


@dataclass(frozen=True)
class Feature:
    """A row of the table: held by ``test``, or refused because of ``why``.

    Attributes:
        name: for people.
        flags: as given to ``vllm serve``; an error names the first. Of a request: none.
        fields: of ``AsyncEngineArgs`` and ``FrontendArgs``; of a request, its own.
        test: ``path::function`` that holds it; empty where it is refused.
        why: the reason of a refusal; of what is held, what to know about it.
        set_in: whether a ``VllmConfig`` asks for what is refused; None where ``elsewhere`` looks.
        set_by: likewise a command line of ``vllm serve``, where a config does not say it, or where
            vLLM itself would refuse it for a reason of its own.
        elsewhere: the module that refuses it, where its check needs more than a config.
        hand_made: why ``set_in`` is tested with a config made by hand, if it is.
    """

    name: str
    flags: tuple[str, ...] = ()
    fields: tuple[str, ...] = ()
    test: str = ""
    why: str = ""
    set_in: Callable[[Any], bool] | None = None
    set_by: Callable[[Any], bool] | None = None
    elsewhere: str = ""
    hand_made: str = ""

    @property
    def refused(self) -> bool:
        return not self.test

    def error(self) -> UnsupportedError:
        """What a server says that does not start."""
        return UnsupportedError(f"{self.flags[0]} with --kv-policy: {self.why}")


def held(name: str, flags: str, test: str, fields: str | None = None, why: str = "") -> Feature:
    """A feature that works, by ``test``."""
    written, named = _named(flags, fields)
    return Feature(name, written, named, test, why)


def refused(
    name: str,
    flags: str,
    why: str,
    set_in: Callable[[Any], bool] | None = None,
    fields: str | None = None,
    **more: Any,
) -> Feature:
    """A feature with which no server starts."""
    written, named = _named(flags, fields)
    return Feature(name, written, named, why=why, set_in=set_in, **more)


def _named(flags: str, fields: str | None) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Flags, and the fields that they set: their own names unless others are given."""
    written = tuple(flags.split())
    if fields is not None:
        return written, tuple(fields.split())
    return written, tuple(f.removeprefix("--").replace("-", "_") for f in written)


# -- what a config asks for -----------------------------------------------------------------------


def _own_logits_processors(vllm_config: Any) -> bool:
    return bool(vllm_config.model_config.logits_processors)


def _installed_logits_processors(vllm_config: Any) -> bool:
    return bool(entry_points(group="vllm.logits_processors"))


def _other_cache_dtype(vllm_config: Any) -> bool:
    own = str(vllm_config.model_config.dtype).removeprefix("torch.")
    return str(vllm_config.cache_config.cache_dtype) not in ("auto", own)


def _micro_batches(vllm_config: Any) -> bool:
    parallel = vllm_config.parallel_config
    return bool(parallel.enable_dbo) or getattr(parallel, "ubatch_size", 0) > 1


def _diffuses(vllm_config: Any) -> bool:
    return (
        getattr(vllm_config, "diffusion_config", None) is not None
        or getattr(vllm_config.model_config, "is_diffusion", False) is True
    )


def _auxiliary_outputs(vllm_config: Any) -> bool:
    aux = getattr(vllm_config, "aux_output_config", None)
    asked = getattr(vllm_config.model_config, "enable_return_routed_experts", False)
    return bool(asked or (aux is not None and aux.enabled))


def _experts_apart(vllm_config: Any) -> bool:
    parallel = vllm_config.parallel_config
    names = ("enable_expert_parallel", "enable_eplb", "enable_elastic_ep")
    return any(getattr(parallel, name, False) for name in names)


def _weights_elsewhere(vllm_config: Any) -> bool:
    offload = getattr(vllm_config, "offload_config", None)
    if offload is None:
        return False
    return bool(offload.uva.cpu_offload_gb > 0 or offload.prefetch.offload_group_size > 0)


def _several_machines(vllm_config: Any) -> bool:
    parallel = vllm_config.parallel_config
    if getattr(parallel, "nnodes", 1) > 1:
        return True
    names = ("data_parallel_hybrid_lb", "data_parallel_external_lb")
    if any(getattr(parallel, name, False) for name in names):
        return True
    return parallel.data_parallel_size > 1 and (
        parallel.data_parallel_size_local < parallel.data_parallel_size
        or parallel.data_parallel_backend != "mp"
    )


def _own_attention(vllm_config: Any) -> bool:
    attention = vllm_config.attention_config
    backend = getattr(attention, "backend", None)
    return (backend is not None and backend.name != "CUSTOM") or getattr(
        attention, "hisparse_config", None
    ) is not None


def _rust_front_end(vllm_config: Any) -> bool:
    return os.environ.get("VLLM_USE_RUST_FRONTEND", "0").lower() in ("1", "true")


def _part(name: str, field: str, ordinary: Any = None) -> Callable[[Any], bool]:
    """Whether ``vllm_config.name.field`` is there, and neither ordinary nor this vLLM's default."""

    def asked(vllm_config: Any) -> bool:
        part = getattr(vllm_config, name, None)
        value = getattr(part, field, ordinary)
        declared = getattr(part, "__dataclass_fields__", {}).get(field)
        return bool(value != ordinary and (declared is None or value != declared.default))

    return asked


def _asked(field: str) -> Callable[[Any], bool]:
    """Whether a command line, or an ``EngineArgs``, sets a flag."""
    return lambda args: bool(getattr(args, field, None))


def _above_one(field: str) -> Callable[[Any], bool]:
    return lambda vllm_config: getattr(vllm_config.parallel_config, field, 1) > 1


def _there(name: str) -> Callable[[Any], bool]:
    return lambda vllm_config: getattr(vllm_config, name, None) is not None


# -- the engine and its server --------------------------------------------------------------------

ENGINE = (
    # Held.
    held(
        "prefix caching",
        "--enable-prefix-caching --prefix-caching-hash-algo",
        "tests/e2e/test_paths.py::test_second_turn_hits_the_prefix_cache",
    ),
    held(
        "prefix caching off",
        "--no-enable-prefix-caching",
        "tests/e2e/test_features_engine.py::test_nothing_cached_and_no_tokenizer",
        fields="",
    ),
    held(
        "chunked prefill",
        "--enable-chunked-prefill --max-num-batched-tokens",
        "tests/e2e/test_rollover.py::test_prompts_longer_than_a_segment",
    ),
    held(
        "prefill in smaller pieces, prefills now and then",
        "--long-prefill-token-threshold --long-prefill-token-threshold-adaptive "
        "--max-num-scheduled-tokens --prefill-schedule-interval",
        "tests/e2e/test_features_engine.py::test_scheduling",
    ),
    held(
        "priorities",
        "--scheduling-policy",
        "tests/e2e/test_features_engine.py::test_scheduling",
        why="priority decides who waits; a stream that runs is never preempted for another",
    ),
    held(
        "fewer running requests than rows, blocks kept free",
        "--max-num-active-seqs --watermark",
        "tests/e2e/test_features_engine.py::test_scheduling",
    ),
    held(
        "one block size for all layers",
        "--disable-hybrid-kv-cache-manager",
        "tests/e2e/test_features_engine.py::test_scheduling",
    ),
    held(
        "worker extensions",
        "--worker-extension-cls",
        "tests/e2e/test_features_engine.py::test_scheduling",
    ),
    held(
        "statistics of blocks",
        "--kv-cache-metrics --kv-cache-metrics-sample",
        "tests/e2e/test_features_engine.py::test_scheduling",
    ),
    held(
        "asynchronous scheduling",
        "--async-scheduling",
        "tests/gpu/test_rollover.py::test_every_token_equals_the_reference",
        why="vLLM's default on a GPU; on vLLM's V1 runner: tests/e2e/test_ahead_v1.py",
    ),
    held(
        "asynchronous scheduling off",
        "--no-async-scheduling",
        "tests/e2e/test_features_engine.py::test_nothing_cached_and_no_tokenizer",
        fields="",
        why="vLLM's default on a CPU",
    ),
    held(
        "bounds of the queue",
        "--max-num-queued-reqs --max-num-queued-tokens",
        "tests/e2e/test_features_server.py::test_a_full_queue_is_a_503",
        why="HTTP 503; a stream that rolls counts as one request",
    ),
    held("block sizes", "--block-size", "tests/e2e/test_paths.py::test_block_sizes"),
    held(
        "a pool of a given size",
        "--num-gpu-blocks-override --kv-cache-memory-bytes",
        "tests/e2e/test_rollover.py::test_a_full_pool_queues_and_never_preempts",
    ),
    held(
        "a longest stream",
        "--max-model-len",
        "tests/e2e/test_rollover.py::test_max_model_len_ends_a_stream",
    ),
    held(
        "types of numbers",
        "--dtype",
        "tests/e2e/test_purity.py::test_perplexity_far_away",
        why="float32 token by token; bfloat16 and float16 by tests/gpu/test_engine.py too",
    ),
    held(
        "quantised weights",
        "--quantization --quantization-config --allow-deprecated-quantization --linear-backend",
        "tests/e2e/test_features_weights.py::test_quantised_weights",
        why="held for 8 bits (compressed-tensors); other methods replace the same linear layers, "
        "and no attention",
    ),
    held(
        "LoRA",
        "--enable-lora --max-loras --max-lora-rank --max-cpu-loras --lora-dtype "
        "--lora-target-modules --lora-modules --specialize-active-lora",
        "tests/e2e/test_features_weights.py::test_lora",
        why="vLLM 0.32's CPU build gives a request without an adapter that of one beside it, with "
        "or without a policy",
    ),
    held(
        "tensor parallelism",
        "--tensor-parallel-size --disable-custom-all-reduce",
        "tests/gpu/test_tensor_parallel.py::test_same_tokens_and_the_references_log_probabilities",
    ),
    held(
        "data parallelism on one machine",
        "--data-parallel-size --data-parallel-size-local --dp-sync-interval "
        "--disable-nccl-for-dp-synchronization",
        "tests/e2e/test_features_server.py::test_two_engines",
    ),
    held(
        "Ray's executor",
        "--distributed-executor-backend",
        "tests/ray/test_executor.py::test_same_tokens_with_and_without",
    ),
    held(
        "torch.compile and CUDA graphs",
        "--compilation-config --enforce-eager --optimization-level --performance-mode "
        "--cudagraph-capture-sizes --max-cudagraph-capture-size",
        "tests/gpu/test_engine.py::test_compiled_with_cuda_graphs",
        why="on a CPU: tests/e2e/test_features_engine.py::test_compiled",
    ),
    held(
        "structured outputs",
        "--structured-outputs-config",
        "tests/e2e/test_endless_server.py::test_structured_output_goes_on",
        why="xgrammar; guidance and outlines: tests/e2e/test_features_engine.py",
    ),
    held(
        "prompt embeddings",
        "--enable-prompt-embeds",
        "tests/e2e/test_features_requests.py::test_embeddings_say_what_their_tokens_say",
        why="within a segment",
    ),
    held(
        "what log-probabilities are of",
        "--logprobs-mode --max-logprobs",
        "tests/e2e/test_features_requests.py::test_same_as_in_one_segment",
    ),
    held(
        "answers in larger pieces",
        "--stream-interval",
        "tests/e2e/test_rollover.py::test_a_streamed_answer_is_not_kept",
    ),
    held(
        "no tokenizer",
        "--skip-tokenizer-init",
        "tests/e2e/test_features_engine.py::test_nothing_cached_and_no_tokenizer",
    ),
    held(
        "no statistics",
        "--disable-log-stats",
        "tests/e2e/test_metrics_engines.py::test_with_statistics_off_nothing_is_counted",
    ),
    held(
        "several API processes",
        "--api-server-count",
        "tests/e2e/test_metrics_server.py::test_several_api_processes",
        why="not with limits of a tenant, which each would count by itself",
    ),
    held(
        "tool calls",
        "--enable-auto-tool-choice --tool-call-parser --tool-parser-plugin --tool-strict-level "
        "--exclude-tools-when-tool-choice-none",
        "tests/e2e/test_features_server.py::test_a_tool_call_longer_than_a_segment",
    ),
    held(
        "reasoning parsers",
        "--reasoning-parser --reasoning-parser-plugin --reasoning-config",
        "tests/e2e/test_features_server.py::test_thoughts_and_an_answer_over_segments",
    ),
    held(
        "endpoints for tokens",
        "--enable-scale-out",
        "tests/e2e/test_door.py::test_a_bad_option_is_refused_on_every_route",
    ),
    held(
        "time to end in",
        "--shutdown-timeout",
        "tests/unit/test_drain.py::test_the_time_for_streams_leaves_some_for_the_end",
    ),
    held(
        "logs of answers",
        "--enable-log-outputs --enable-log-deltas",
        "tests/unit/test_piece.py::test_the_log_of_outputs_has_the_text",
        why="with them vLLM keeps a copy of a streamed chat's text",
    ),
    held("an API key", "--api-key", "tests/deploy/test_container.py::test_key"),
    # Refused.
    refused(
        "speculative decoding",
        "--speculative-config --spec-method --spec-model --spec-tokens",
        "a rollover with drafts in flight is not held against the reference yet",
        _there("speculative_config"),
    ),
    refused(
        "KV connectors and offloading",
        "--kv-transfer-config --kv-offloading-size --kv-offloading-backend",
        "a KV connector expects every block of a prefix, and a stream keeps two ends of it",
        _there("kv_transfer_config"),
    ),
    refused(
        "KV events",
        "--kv-events-config",
        "block hashes under the policy name the sinks, which consumers of events do not know",
        _part("kv_events_config", "enable_kv_cache_events", False),
    ),
    refused(
        "decode context parallelism",
        "--decode-context-parallel-size --dcp-comm-backend --dcp-q-replicate "
        "--dcp-kv-cache-interleave-size --cp-kv-cache-interleave-size",
        "the cache of a stream is not sharded by token",
        _above_one("decode_context_parallel_size"),
    ),
    refused(
        "prefill context parallelism",
        "--prefill-context-parallel-size",
        "the cache of a stream is not sharded by token",
        _above_one("prefill_context_parallel_size"),
        set_by=lambda args: (getattr(args, "prefill_context_parallel_size", None) or 1) > 1,
        hand_made="vLLM takes it on its V2 runner alone, which needs a GPU",
    ),
    refused(
        "pipeline parallelism",
        "--pipeline-parallel-size",
        NOT_HELD,
        _above_one("pipeline_parallel_size"),
    ),
    refused(
        "KV of another type than the model's",
        "--kv-cache-dtype --kv-cache-dtype-skip-layers",
        "the attention provider reads keys in the model's own type, without scales",
        _other_cache_dtype,
    ),
    refused(
        "KV sharing in prefill",
        "--kv-sharing-fast-prefill",
        "it skips layers' keys that the window needs",
        _part("cache_config", "kv_sharing_fast_prefill", False),
    ),
    refused(
        "the Rust front end",
        "VLLM_USE_RUST_FRONTEND --grpc-port",
        "the Rust front end does not check sink_tokens",
        _rust_front_end,
        fields="grpc_port",
    ),
    refused(
        "gRPC",
        "--grpc",
        "its server has no limits of a tenant, no drain and no API key",
        set_by=lambda args: bool(getattr(args, "grpc", False)),
    ),
    refused(
        "logits processors",
        "--logits-processors",
        "a processor sees a new request with shortened lists at every rollover",
        _own_logits_processors,
    ),
    refused(
        "installed logits processors",
        "vllm.logits_processors",
        "an installed package registers a logits processor, which would see a new request with "
        "shortened lists at every rollover",
        _installed_logits_processors,
        fields="",
    ),
    refused(
        "watermarks in the text",
        "--watermark-config",
        "a watermark is computed from all tokens of a stream, and early ones are forgotten",
        _there("watermark_config"),
        set_by=_asked("watermark_config"),
        hand_made="vLLM takes it on its V2 runner alone, which needs a GPU",
    ),
    refused(
        "trace replay",
        "--enable-trace-replay",
        "a trace is followed by the length of the prompt, which a rollover lowers",
        _part("model_config", "enable_trace_replay", False),
        set_by=_asked("enable_trace_replay"),
        hand_made="vLLM takes it on its V2 runner alone, which needs a GPU",
    ),
    refused(
        "sampling masks",
        "--return-sampling-mask",
        NOT_HELD,
        _part("model_config", "return_sampling_mask", False),
        set_by=_asked("return_sampling_mask"),
        hand_made="vLLM takes it on its V2 runner alone, which needs a GPU",
    ),
    refused(
        "routed experts in the answer",
        "--enable-return-routed-experts --aux-output-config",
        "they are kept for every token of a request, and a stream has no last one",
        _auxiliary_outputs,
        set_by=_asked("enable_return_routed_experts"),
        hand_made="vLLM takes it on its V2 runner alone, which needs a GPU",
    ),
    refused(
        "micro-batches",
        "--enable-dbo --ubatch-size --dbo-decode-token-threshold --dbo-prefill-token-threshold",
        "attention's plan of a step is for one batch",
        _micro_batches,
        set_by=lambda args: (
            bool(getattr(args, "enable_dbo", False))
            or (getattr(args, "ubatch_size", None) or 0) > 1
        ),
        hand_made="vLLM's CPU build switches it off, and elsewhere it needs DeepEP's kernels",
    ),
    refused(
        "chunked prefill off",
        "--no-enable-chunked-prefill",
        "a step would take a whole segment, and reserve blocks for two of them",
        lambda vllm_config: not vllm_config.scheduler_config.enable_chunked_prefill,
        fields="",
    ),
    refused(
        "admission by the first chunk",
        "--no-scheduler-reserve-full-isl",
        "admission asks for what a whole stream may need, or streams would starve each other",
        _part("scheduler_config", "scheduler_reserve_full_isl", True),
        fields="scheduler_reserve_full_isl",
    ),
    refused(
        "diffusion models",
        "--diffusion-config",
        "they write a canvas in any order, and the policy evicts in the order of the text",
        _diffuses,
    ),
    refused(
        "encoder caches elsewhere", "--ec-transfer-config", NOT_HELD, _there("ec_transfer_config")
    ),
    refused(
        "sleep mode",
        "--enable-sleep-mode --sleep-mode-offload-cudagraph --sleep-preserve-parameter-names "
        "--enable-nccl-comm-suspend",
        "it discards the KV cache, and a stream that has rolled cannot be computed again",
        _part("model_config", "enable_sleep_mode", False),
        set_by=_asked("enable_sleep_mode"),
        hand_made="vLLM's CPU build refuses it",
    ),
    refused(
        "new weights in a running server",
        "--weight-transfer-config",
        "they want a new KV cache, and a stream that has rolled cannot be computed again",
        _there("weight_transfer_config"),
    ),
    refused(
        "expert parallelism",
        "--enable-expert-parallel --enable-eplb --enable-elastic-ep --eplb-config "
        "--elastic-ep-max-dp-size --expert-placement-strategy --enable-ep-weight-filter",
        NOT_HELD,
        _experts_apart,
        set_by=_asked("enable_expert_parallel"),
        hand_made="vLLM refuses it for a model without experts",
    ),
    refused(
        "weights in the CPU's memory",
        "--cpu-offload-gb --cpu-offload-params --offload-backend --offload-group-size "
        "--offload-num-in-group --offload-prefetch-step --offload-params",
        NOT_HELD,
        _weights_elsewhere,
    ),
    refused(
        "several machines",
        "--nnodes --node-rank --master-addr --master-port --data-parallel-hybrid-lb "
        "--data-parallel-external-lb --data-parallel-multi-port-external-lb "
        "--data-parallel-backend --data-parallel-rank --data-parallel-start-rank "
        "--data-parallel-address --data-parallel-rpc-port --data-parallel-supervisor-port "
        "--dp-supervisor-probe-interval-s --dp-supervisor-probe-timeout-s "
        "--dp-supervisor-probe-failure-threshold",
        NOT_HELD,
        _several_machines,
    ),
    refused(
        "an engine without a front end",
        "--headless",
        NOT_HELD,
        set_by=lambda args: bool(getattr(args, "headless", False)),
    ),
    refused(
        "recovery from faults",
        "--enable-fault-tolerance --fault-tolerance-config",
        NOT_HELD,
        _part("parallel_config", "enable_fault_tolerance", False),
        set_by=_asked("enable_fault_tolerance"),
        hand_made="vLLM refuses it for a model without experts",
    ),
    refused(
        "sampling shared by ranks",
        "--enable-batch-sharded-sampling",
        NOT_HELD,
        lambda c: getattr(c.parallel_config, "enable_batch_sharded_sampling", None) is True,
        set_by=_asked("enable_batch_sharded_sampling"),
        hand_made="vLLM takes it on its V2 runner alone, which needs a GPU",
    ),
    refused(
        "fully sharded LoRA",
        "--fully-sharded-loras",
        NOT_HELD,
        _part("lora_config", "fully_sharded_loras", False),
    ),
    refused(
        "prefix hits within a block",
        "--prefix-match-unit",
        NOT_HELD,
        _part("cache_config", "prefix_match_unit"),
    ),
    refused(
        "more of a window's prefixes kept",
        "--prefix-cache-retention-interval",
        NOT_HELD,
        _part("cache_config", "prefix_cache_retention_interval", 0),
    ),
    refused(
        "the model's own window off",
        "--disable-sliding-window",
        "a window of all layers gives way to the policy already; of single layers it is the model",
        set_by=_asked("disable_sliding_window"),
    ),
    refused(
        "Transformers' model in vLLM's place",
        "--model-impl",
        "only GPT-NeoX is held in Transformers' implementation, and comes in it unasked",
        lambda c: c.model_config.model_impl not in ("auto", "vllm"),
    ),
    refused(
        "another class for an architecture",
        "--model-class-overrides",
        "the architecture's name then does not say which model it is",
        lambda c: bool(getattr(c.model_config, "model_class_overrides", None)),
    ),
    refused(
        "plugins for prompts",
        "--io-processor-plugin",
        NOT_HELD,
        _part("model_config", "io_processor_plugin"),
    ),
    refused(
        "lm-format-enforcer",
        "--structured-outputs-config.backend=lm-format-enforcer",
        "it does not load with vLLM 0.32",
        lambda c: c.structured_outputs_config.backend == "lm-format-enforcer",
        fields="",
    ),
    refused(
        "tokens in, tokens out alone",
        "--tokens-only",
        NOT_HELD,
        set_by=lambda args: bool(getattr(args, "tokens_only", False)),
    ),
    refused(
        "tools that the server calls",
        "--tool-server",
        NOT_HELD,
        set_by=lambda args: bool(getattr(args, "tool_server", None)),
    ),
    refused(
        "another attention backend",
        "--attention-backend",
        "the policy has its own",
        elsewhere="vllm_sink/startup/engine_config.py",
    ),
    refused(
        "another attention backend, by its config",
        "--attention-config",
        "the policy has its own backend, and attention that is not sparse",
        _own_attention,
    ),
    refused(
        "another scheduler",
        "--scheduler-cls",
        "the policy has its own",
        elsewhere="vllm_sink/startup/engine_config.py",
    ),
    refused(
        "another worker",
        "--worker-cls",
        "the policy has its own",
        elsewhere="vllm_sink/startup/engine_config.py",
    ),
    refused(
        "pooling",
        "--runner --convert --pooler-config",
        "only generation has streams",
        elsewhere="vllm_sink/startup/models.py",
    ),
)

# -- a request ------------------------------------------------------------------------------------

_SAMPLING = "tests/e2e/test_rollover.py::test_sampling_does_not_know_segments"
_SAME = "tests/e2e/test_features_requests.py::test_same_as_in_one_segment"
_ROLLS = "tests/e2e/test_features_requests.py::test_refused_for_what_may_roll"
_WITHIN = "within a segment; HTTP 400 for a stream that may roll"

REQUEST = (
    held("penalties", "", _SAMPLING, "presence_penalty frequency_penalty repetition_penalty"),
    held("temperature, top k, seed", "", _SAMPLING, "temperature top_k seed"),
    held("top p, min p", "", _SAME, "top_p min_p"),
    held("lengths", "", _SAMPLING, "min_tokens max_tokens ignore_eos stop_token_ids"),
    held("stop strings", "", _SAMPLING, "stop"),
    held("stop strings in the answer", "", _SAME, "include_stop_str_in_output"),
    held("biases", "", _SAMPLING, "logit_bias"),
    held("allowed tokens", "", _SAME, "allowed_token_ids"),
    held("bad words", "", _SAMPLING, "bad_words"),
    held(
        "several answers", "", "tests/e2e/test_rollover.py::test_several_answers_to_one_prompt", "n"
    ),
    held(
        "beams",
        "",
        "tests/e2e/test_door.py::test_beams_have_the_sinks_that_were_asked_for",
        "beam_width length_penalty",
        "they end at the model's context",
    ),
    held(
        "log-probabilities",
        "",
        "tests/e2e/test_rollover.py::test_every_token_equals_the_reference",
        "logprobs",
    ),
    held(
        "log-probabilities of given tokens, flat ones", "", _SAME, "logprob_token_ids flat_logprobs"
    ),
    held(
        "log-probabilities of the prompt",
        "",
        "tests/e2e/test_rollover.py::test_what_does_not_fit_a_segment",
        "prompt_logprobs",
        "of a prompt that fits in a segment; else HTTP 400",
    ),
    held(
        "log-probabilities of given tokens in the prompt",
        "",
        _ROLLS,
        "prompt_logprob_token_ids prompt_logprob_start",
        _WITHIN,
    ),
    held(
        "structured outputs",
        "",
        "tests/e2e/test_features_engine.py::test_structured_outputs",
        "structured_outputs",
    ),
    held("a budget of thoughts", "", _ROLLS, "thinking_token_budget", _WITHIN),
    held(
        "repetitions end an answer",
        "",
        _SAME,
        "repetition_detection",
        "patterns that fit in the window, or within a segment; else HTTP 400",
    ),
    held(
        "streaming",
        "",
        "tests/e2e/test_rollover.py::test_a_streamed_answer_is_not_kept",
        "output_kind stream_interval",
    ),
    held("text", "", _SAME, "detokenize skip_special_tokens spaces_between_special_tokens"),
    held("past the prefix cache", "", _SAME, "skip_reading_prefix_cache"),
    held(
        "arguments of a plugin",
        "",
        "tests/e2e/test_server.py::test_a_request_pins_its_own",
        "extra_args",
        "sink_tokens, window_tokens, endless, and no other",
    ),
    held(
        "a trace to follow",
        "",
        _ROLLS,
        "trace_decode_token_ids",
        "HTTP 400: --enable-trace-replay is refused",
    ),
    held(
        "prompt embeddings",
        "",
        "tests/e2e/test_features_requests.py::test_embeddings_say_what_their_tokens_say",
        "prompt_embeds prompt_is_token_ids",
        _WITHIN,
    ),
    held(
        "prompts as tokens and as text",
        "",
        "tests/e2e/test_rollover.py::test_prompts_longer_than_a_segment",
        "prompt prompt_token_ids",
    ),
    held(
        "a salt for the prefix cache",
        "",
        "tests/unit/test_hashing.py::test_a_salt_still_parts",
        "cache_salt",
    ),
    held(
        "prompts that come piece by piece",
        "",
        "tests/e2e/test_async_engine.py::test_streaming_input_is_refused",
        "",
        "HTTP 400: vLLM turns what was said into prompt, at any point of a rollover",
    ),
)

FEATURES = (*ENGINE, *REQUEST)

# -- no bearing -----------------------------------------------------------------------------------

#: Settings that a stream does not depend on: why, and the fields.
NO_BEARING = (
    (
        "Which model, tokenizer and revision, and how they are loaded: the policy reads what "
        "comes of it.",
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


def unclassified(fields: set[str]) -> set[str]:
    """Those of ``fields`` that neither a row nor a group names."""
    named = {field for feature in FEATURES for field in feature.fields}
    grouped = {field for _, group in NO_BEARING for field in group.split()}
    return fields - named - grouped


def refuse_config(vllm_config: Any) -> None:
    """Refuse what a config asks for.

    Raises:
        UnsupportedError: naming each flag and its reason, a line each.
    """
    _refuse([f for f in ENGINE if f.set_in is not None and f.set_in(vllm_config)])


def refuse_arguments(args: Any) -> None:
    """Refuse what arguments ask for, before vLLM makes a config of them.

    Args:
        args: the namespace of ``vllm serve``, or an ``EngineArgs``.

    Raises:
        UnsupportedError: naming each flag and its reason, a line each.
    """
    _refuse(refused_arguments(args))


def refused_arguments(args: Any) -> list[Feature]:
    """What arguments ask for and ``refuse_arguments`` refuses."""
    return [f for f in ENGINE if f.set_by is not None and f.set_by(args)]


def _refuse(asked: list[Feature]) -> None:
    if asked:
        raise UnsupportedError("\n".join(str(feature.error()) for feature in asked))


# -- the page -------------------------------------------------------------------------------------

PAGE = Path(__file__).parents[2] / "docs" / "features.md"

_HEAD = """# vLLM's features under a policy

Written by `make features` from `vllm_sink/startup/features.py`. Each feature is held by the test
that is named, or a server does not start with it; `vllm-sink doctor MODEL` with the same flags says
so before any weights are loaded. There is no third kind: `tests/unit/test_features.py` walks every
field of vLLM's arguments, of its sampling parameters and of its prompts.
"""


def render() -> str:
    """The table for people, in Markdown."""
    held_ones = [feature for feature in ENGINE if not feature.refused]
    refused_ones = [feature for feature in ENGINE if feature.refused]
    parts = [_HEAD, "## Engine and server: held\n", *_table("flags", "held by", "")]
    parts += map(_held_row, held_ones)
    parts += ["\n## Engine and server: refused\n", *_table("flags", "why", "")]
    parts += map(_refused_row, refused_ones)
    parts += ["\n## A request\n", *_table("fields", "held by", "")]
    parts += map(_request_row, REQUEST)
    parts.append("\n## No bearing on a stream\n")
    parts += [f"- {why} {_code(tuple(fields.split()))}" for why, fields in NO_BEARING]
    return "\n".join(parts) + "\n"


def _table(*columns: str) -> tuple[str, str]:
    heads = ("feature", *columns)
    return f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"


def _code(names: tuple[str, ...]) -> str:
    return " ".join(f"`{name}`" for name in names)


def _held_row(feature: Feature) -> str:
    return f"| {feature.name} | {_code(feature.flags)} | `{feature.test}` | {feature.why} |"


def _refused_row(feature: Feature) -> str:
    told = ""
    if feature.hand_made:
        told = f"from Python tested with a config made by hand: {feature.hand_made}"
    return f"| {feature.name} | {_code(feature.flags)} | {feature.why} | {told} |"


def _request_row(feature: Feature) -> str:
    return f"| {feature.name} | {_code(feature.fields)} | `{feature.test}` | {feature.why} |"


if __name__ == "__main__":
    PAGE.write_text(render())
