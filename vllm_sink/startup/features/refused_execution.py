"""Refused features of how and where steps are computed."""

from __future__ import annotations

from typing import Any

from vllm_sink.startup.features.checks import (
    Check,
    above,
    any_of,
    differs,
    either,
    flag,
    flag_above_one,
    given,
    set_to,
    there,
)
from vllm_sink.startup.features.row import NOT_HELD, refused


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


ROWS = (
    refused(
        "micro-batches",
        "--enable-dbo --ubatch-size --dbo-decode-token-threshold --dbo-prefill-token-threshold",
        "attention plans a step for one batch",
        any_of(given("parallel_config.enable_dbo"), above(1, "parallel_config.ubatch_size")),
        set_by=either(flag("enable_dbo"), flag_above_one("ubatch_size")),
        hand_made="vLLM's CPU build switches it off, and elsewhere it needs DeepEP's kernels",
        allowed="one batch a step, without it",
    ),
    refused(
        "chunked prefill off",
        "--no-enable-chunked-prefill",
        "a step would take a whole segment, and reserve blocks for two of them",
        set_to(False, "scheduler_config.enable_chunked_prefill"),
        fields="",
        allowed="--enable-chunked-prefill, vLLM's default",
    ),
    refused(
        "admission by the first chunk",
        "--no-scheduler-reserve-full-isl",
        "admission needs blocks for the whole prompt, or requests would starve each other",
        differs("scheduler_config", "scheduler_reserve_full_isl", True),
        fields="scheduler_reserve_full_isl",
        allowed="--scheduler-reserve-full-isl, vLLM's default",
    ),
    refused(
        "diffusion models",
        "--diffusion-config",
        "they write a canvas in any order, and the policy evicts in the order of the text",
        any_of(there("diffusion_config"), set_to(True, "model_config.is_diffusion")),
        allowed="a model that writes from left to right",
    ),
    refused(
        "transfer of encoder caches", "--ec-transfer-config", NOT_HELD, there("ec_transfer_config")
    ),
    refused(
        "sleep mode",
        "--enable-sleep-mode --sleep-mode-offload-cudagraph --sleep-preserve-parameter-names "
        "--enable-nccl-comm-suspend",
        "it discards the KV cache, and a stream that has rolled cannot be computed again",
        differs("model_config", "enable_sleep_mode", False),
        set_by=flag("enable_sleep_mode"),
        hand_made="vLLM's CPU build refuses it",
    ),
    refused(
        "new weights in a running server",
        "--weight-transfer-config",
        "they need a new KV cache, and a stream that has rolled cannot be computed again",
        there("weight_transfer_config"),
    ),
    refused(
        "expert parallelism",
        "--enable-expert-parallel --enable-eplb --enable-elastic-ep --eplb-config "
        "--elastic-ep-max-dp-size --expert-placement-strategy --enable-ep-weight-filter",
        NOT_HELD,
        given(
            "parallel_config.enable_expert_parallel",
            "parallel_config.enable_eplb",
            "parallel_config.enable_elastic_ep",
        ),
        set_by=flag("enable_expert_parallel"),
        hand_made="vLLM refuses it for a model without experts",
    ),
    refused(
        "weights in CPU memory",
        "--cpu-offload-gb --cpu-offload-params --offload-backend --offload-group-size "
        "--offload-num-in-group --offload-prefetch-step --offload-params",
        NOT_HELD,
        above(0, "offload_config.uva.cpu_offload_gb", "offload_config.prefetch.offload_group_size"),
        allowed="--cpu-offload-gb 0 and --offload-group-size 0",
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
        Check(
            _several_machines,
            (
                "parallel_config.nnodes",
                "parallel_config.data_parallel_size",
                "parallel_config.data_parallel_size_local",
                "parallel_config.data_parallel_backend",
                "parallel_config.data_parallel_hybrid_lb",
                "parallel_config.data_parallel_external_lb",
            ),
        ),
        allowed="one machine, and data parallelism by mp on it",
    ),
    refused(
        "an engine without a front end",
        "--headless",
        NOT_HELD,
        set_by=flag("headless"),
    ),
    refused(
        "fault tolerance",
        "--enable-fault-tolerance --fault-tolerance-config",
        NOT_HELD,
        differs("parallel_config", "enable_fault_tolerance", False),
        set_by=flag("enable_fault_tolerance"),
        hand_made="vLLM refuses it for a model without experts",
    ),
    refused(
        "sampling split over ranks",
        "--enable-batch-sharded-sampling",
        NOT_HELD,
        set_to(True, "parallel_config.enable_batch_sharded_sampling"),
        set_by=flag("enable_batch_sharded_sampling"),
        hand_made="vLLM takes it on its V2 runner alone, which needs a GPU",
    ),
    refused(
        "fully sharded LoRA",
        "--fully-sharded-loras",
        NOT_HELD,
        differs("lora_config", "fully_sharded_loras", False),
    ),
)
