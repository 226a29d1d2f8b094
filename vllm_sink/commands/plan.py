"""``vllm-sink plan MODEL``: how many streams of what window fit, and what they cost."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from vllm_sink.commands import pool
from vllm_sink.commands.arguments import LARGEST, SMALLEST, Json, KvGib, Model
from vllm_sink.errors import PolicyError


def plan(
    model: Model,
    sink_tokens: Annotated[int | None, typer.Option(metavar="S", help="sinks of a stream")] = None,
    window_tokens: Annotated[
        list[int] | None,
        typer.Option(
            metavar="W",
            help="a window to plan for; may be given several times (default: powers of two)",
        ),
    ] = None,
    kv_gib: KvGib = None,
    gpu_gib: Annotated[
        float | None,
        typer.Option(
            min=SMALLEST,
            max=LARGEST,
            metavar="GiB",
            help="memory of a GPU, instead of --kv-gib; the weights and --overhead-gib are "
            "subtracted (default: this GPU's)",
        ),
    ] = None,
    gpu_memory_utilization: Annotated[
        float, typer.Option(min=SMALLEST, max=1, help="fraction of it that vLLM may use")
    ] = pool.UTILIZATION,
    overhead_gib: Annotated[
        float,
        typer.Option(min=SMALLEST, max=LARGEST, metavar="GiB", help="activations and CUDA graphs"),
    ] = pool.OVERHEAD_GIB,
    bandwidth: Annotated[
        float | None,
        typer.Option(
            min=SMALLEST,
            max=LARGEST,
            metavar="GB/s",
            help="memory bandwidth, which limits the steps per second (default: this GPU's)",
        ),
    ] = None,
    dtype: str = "auto",
    max_model_len: int | None = None,
    block_size: int | None = None,
    trust_remote_code: Annotated[bool, typer.Option("--trust-remote-code")] = False,
    as_json: Json = False,
) -> int:
    """Say how many streams fit, by window, on this GPU or in the given memory.

    Exit status 1 if the model is refused.
    """
    from vllm_sink import plugin
    from vllm_sink.commands import diagnosis, plan_table, verdict
    from vllm_sink.config.kv_policy import KVPolicy

    if kv_gib is not None and gpu_gib is not None:
        raise PolicyError("--gpu-gib", gpu_gib, "one of --kv-gib and --gpu-gib")
    plugin.register()
    policy = {"name": "sink", "sink_tokens": sink_tokens, "window_tokens": 1}
    found = diagnosis.diagnose(
        model,
        KVPolicy.from_config({k: v for k, v in policy.items() if v is not None}),
        None,
        dtype=dtype,
        max_model_len=max_model_len,
        block_size=block_size,
        trust_remote_code=trust_remote_code,
    )
    if not found["supported"]:
        print(json.dumps(found) if as_json else verdict.render(found))
        return 1
    weights = pool.weight_bytes(model)
    if kv_gib is None:
        gpu = pool.Gpu(gpu_gib, gpu_memory_utilization, overhead_gib)
        pool_bytes, source = pool.left_on(gpu, model, weights)
    else:
        pool_bytes, source = int(kv_gib * pool.GIB), "named by --kv-gib"
    made: dict[str, Any] = {
        "model": model,
        "dtype": found["dtype"],
        "block_size": found["block_size"],
        "sink_tokens": found["sink_tokens"],
        "native_context": found["native_context"],
        "kv_bytes_per_token": found["kv_bytes_per_token"],
        "weight_bytes": weights,
        "kv_pool_bytes": pool_bytes,
        "kv_pool": source,
        "bandwidth_bytes": bandwidth * 1e9 if bandwidth else pool.gpu_bandwidth(),
    }
    windows = window_tokens or plan_table.usual_windows(found)
    made["windows"] = [plan_table.row(made, found, window) for window in windows]
    print(json.dumps(made, indent=2) if as_json else plan_table.render(made))
    return 0
