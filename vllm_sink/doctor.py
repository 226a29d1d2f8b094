"""``vllm-sink doctor MODEL``: what a server would say of a model, without loading its weights."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from vllm_sink import startup, support
from vllm_sink.errors import PolicyError, UnsupportedError
from vllm_sink.policy import KVPolicy, policy_of, sink_blocks


def diagnose(
    model: str, kv_policy: KVPolicy, kv_gib: float | None, **settings: Any
) -> dict[str, Any]:
    """The verdict on ``model`` as plain data.

    Args:
        model: a model folder or name.
        kv_policy: as asked for; numbers left open are chosen.
        kv_gib: size of the KV pool in GiB; None for what vLLM was told, if anything.
        settings: further engine arguments, by their Python names.
    """
    from vllm.engine.arg_utils import EngineArgs

    verdict: dict[str, Any] = {"model": model, "supported": False}
    if _names_a_folder(model) and not Path(model).expanduser().is_dir():
        return verdict | {"refused": f"there is no folder {model}"}
    config = {key: value for key, value in kv_policy.to_config().items() if value is not None}
    engine_args = EngineArgs(model=model, additional_config={"kv_policy": config}, **settings)
    if kv_gib is not None:
        engine_args.kv_cache_memory_bytes = int(kv_gib * 2**30)
    try:
        examined = startup.read_model(engine_args)
        verdict |= asdict(examined)
        resolved = support.resolve(kv_policy, examined)
        verdict |= {
            "policy": resolved.name,
            "sink_tokens": resolved.sink_tokens,
            "window_tokens": resolved.window,
        }
        vllm_config = engine_args.create_engine_config()
    except (PolicyError, UnsupportedError) as error:
        return verdict | {"refused": str(error)}
    except (ValueError, OSError) as error:
        # vLLM's own refusal: an architecture that it does not know, a model that is not there.
        return verdict | {"refused": _first_line(error)}
    return verdict | {"supported": True} | _sizes(vllm_config, resolved)


def _sizes(vllm_config: Any, kv_policy: KVPolicy) -> dict[str, Any]:
    block = startup.kv_bytes_per_block(vllm_config)
    streaming = startup.stream_blocks(vllm_config, kv_policy, 1)
    prefilling = startup.stream_blocks(vllm_config, kv_policy, vllm_config.max_in_flight_tokens)
    pool = startup.known_pool_bytes(vllm_config)
    cache = vllm_config.cache_config
    return {
        "dtype": str(vllm_config.model_config.dtype).removeprefix("torch."),
        "block_size": cache.block_size,
        "sink_blocks": sink_blocks(kv_policy.sink_tokens, cache.block_size),
        "max_stream_tokens": _limit(vllm_config),
        "segment_tokens": vllm_config.model_config.max_model_len,
        "kv_bytes_per_token": block // cache.block_size,
        "blocks_per_stream": streaming,
        "blocks_while_prefilling": prefilling,
        "max_in_flight_tokens": vllm_config.max_in_flight_tokens,
        "kv_bytes_per_stream": streaming * block,
        "kv_pool_bytes": pool,
        # One block of the pool is vLLM's null block.
        "streams_that_fit": None if pool is None else max(0, pool // block - 1) // streaming,
    }


def _limit(vllm_config: Any) -> int | None:
    """The most tokens of a stream; None where only the client ends it."""
    found = policy_of(vllm_config)
    assert found is not None
    return found.stream_tokens


def _longest(verdict: dict[str, Any]) -> str:
    limit, segment = verdict["max_stream_tokens"], verdict["segment_tokens"]
    if limit is not None:
        return f"{limit:,} tokens (--max-model-len)"
    return f"until it is stopped, in segments of {segment:,} tokens"


def _names_a_folder(model: str) -> bool:
    """Whether this can only be meant as a path; ``organisation/name`` may be a model hub's."""
    return model.startswith(("/", ".", "~")) or ("/" in model and Path(model).parent.is_dir())


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines()]
    told = [line for line in lines if line.startswith(("Value error", "Assertion"))]
    return (told or lines or [type(error).__name__])[0].partition(" [type=")[0]


def render(verdict: dict[str, Any]) -> str:
    """The verdict for people."""
    if not verdict["supported"]:
        return f"{verdict['model']}: refused\n  {verdict['refused']}"
    mib = 2**20
    pool = verdict["kv_pool_bytes"]
    fits = (
        "unknown: vLLM measures the pool at start-up; name one with --kv-gib"
        if pool is None
        else f"{verdict['streams_that_fit']} in a pool of {pool / mib:,.0f} MiB"
    )
    own = ""
    if verdict["own_window"]:
        own = f"replaces the model's own sliding window of {verdict['own_window']} tokens"
    elif verdict["layer_windows"]:
        own = f"{len(verdict['layer_windows'])} layers keep their own window, without sinks"
    rows = [
        ("architecture", f"{verdict['architecture']} ({verdict['family']})"),
        ("positions", verdict["positions"]),
        ("native context", f"{verdict['native_context']:,} tokens"),
        (
            "policy",
            f"{verdict['policy']}: {verdict['sink_tokens']} sink tokens, "
            f"a window of {verdict['window_tokens']:,}",
        ),
        ("sliding window", own),
        (
            "KV of a stream",
            f"{verdict['kv_bytes_per_stream'] / mib:,.1f} MiB in {verdict['blocks_per_stream']} "
            f"blocks of {verdict['block_size']} tokens ({verdict['dtype']}), at any length",
        ),
        ("while prefilling", f"up to {verdict['blocks_while_prefilling']} blocks"),
        ("streams that fit", fits),
        ("longest stream", _longest(verdict)),
    ]
    body = "\n".join(f"  {name:<17} {value}" for name, value in rows if value)
    return f"{verdict['model']}: supported\n{body}"


def dumps(verdict: dict[str, Any]) -> str:
    """The verdict for programs."""
    return json.dumps(verdict, indent=2)
