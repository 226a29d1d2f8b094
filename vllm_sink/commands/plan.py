"""``vllm-sink plan MODEL``: how many streams of what window fit, and what they cost."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from vllm_sink import policy
from vllm_sink.cache.stream_reservations import streams_that_fit
from vllm_sink.config.admission import DEFAULT_STREAM_SHARE, FLAGS
from vllm_sink.errors import PolicyError

GIB = 2**30
MIB = 2**20

#: Device memory that goes to activations and CUDA graphs; vLLM measures it at start-up.
OVERHEAD_GIB = 1.0

#: vLLM's own default.
UTILIZATION = 0.92


def _positive(unit: str) -> Any:
    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = 0.0
        if not 0 < value < float("inf"):
            raise argparse.ArgumentTypeError(
                f"{text!r} is not allowed; allowed: a positive number of {unit}"
            )
        return value

    return parse


def _share(text: str) -> float:
    value: float = _positive("memory's share, at most 1")(text)
    if value > 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not allowed; allowed: 0 to 1")
    return value


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="a model folder or name, as for vllm serve")
    parser.add_argument("--sink-tokens", type=int, metavar="S", help="sinks of a stream")
    parser.add_argument(
        "--window-tokens",
        type=int,
        metavar="W",
        action="append",
        help="a window to plan for; may be given several times (default: powers of two)",
    )
    memory = parser.add_mutually_exclusive_group()
    memory.add_argument(
        "--kv-gib", type=_positive("GiB"), metavar="GIB", help="size of the KV pool"
    )
    memory.add_argument(
        "--gpu-gib",
        type=_positive("GiB"),
        metavar="GIB",
        help="memory of a GPU; the weights and --overhead-gib go off it (default: this GPU's)",
    )
    parser.add_argument("--gpu-memory-utilization", type=_share, default=UTILIZATION, metavar="X")
    parser.add_argument(
        "--overhead-gib", type=_positive("GiB"), default=OVERHEAD_GIB, metavar="GIB"
    )
    parser.add_argument(
        "--bandwidth",
        type=_positive("GB/s"),
        metavar="GB/S",
        help="memory bandwidth, for the most steps a second (default: this GPU's)",
    )
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--max-model-len", type=int)
    parser.add_argument("--block-size", type=int)
    parser.add_argument("--trust-remote-code", action="store_true")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Print the plan; 1 if the model is refused."""
    from vllm_sink import plugin
    from vllm_sink.commands import doctor
    from vllm_sink.config.kv_policy import KVPolicy

    plugin.register()
    asked = {"name": "sink", "sink_tokens": args.sink_tokens, "window_tokens": 1}
    kv_policy = KVPolicy.from_config({k: v for k, v in asked.items() if v is not None})
    verdict = doctor.diagnose(
        args.model,
        kv_policy,
        None,
        dtype=args.dtype,
        max_model_len=args.max_model_len,
        block_size=args.block_size,
        trust_remote_code=args.trust_remote_code,
    )
    if not verdict["supported"]:
        print(json.dumps(verdict) if args.json else doctor.render(verdict))
        return 1
    weights = weight_bytes(args.model)
    pool, told = pool_bytes(args, weights)
    plan = {
        "model": args.model,
        "dtype": verdict["dtype"],
        "block_size": verdict["block_size"],
        "sink_tokens": verdict["sink_tokens"],
        "native_context": verdict["native_context"],
        "kv_bytes_per_token": verdict["kv_bytes_per_token"],
        "weight_bytes": weights,
        "kv_pool_bytes": pool,
        "kv_pool": told,
        "bandwidth_bytes": args.bandwidth * 1e9 if args.bandwidth else gpu_bandwidth(),
    }
    windows = args.window_tokens or usual_windows(verdict)
    plan["windows"] = [row(plan, verdict, window) for window in windows]
    print(json.dumps(plan, indent=2) if args.json else render(plan))
    return 0


def usual_windows(verdict: dict[str, Any]) -> list[int]:
    """Powers of two from 512 on that leave room for the sinks, and the largest window of all."""
    most = verdict["native_context"] - verdict["sink_tokens"]
    windows, window = [], 512
    while window < most:
        windows.append(window)
        window *= 2
    return [*windows, most]


def row(plan: dict[str, Any], verdict: dict[str, Any], window: int) -> dict[str, Any]:
    """What streams of one window cost.

    Raises:
        PolicyError: positions past the model's context were never learned.
    """
    sinks, size = plan["sink_tokens"], plan["block_size"]
    most = plan["native_context"] - sinks
    if not 1 <= window <= most:
        raise PolicyError("--window-tokens", window, f"1 to {most}")

    def blocks(in_flight: int) -> int:
        return policy.max_blocks(sinks, window, in_flight, verdict["segment_tokens"], size)

    block_bytes = size * plan["kv_bytes_per_token"]
    # One block of the pool is vLLM's null block.
    pool_blocks = plan["kv_pool_bytes"] // block_bytes - 1
    fit = streams_that_fit(pool_blocks, DEFAULT_STREAM_SHARE, pool_blocks, blocks(1))
    read = (sinks + window) * plan["kv_bytes_per_token"]
    step = fit * read + (plan["weight_bytes"] or 0)
    bandwidth = plan["bandwidth_bytes"]
    return {
        "window_tokens": window,
        "blocks_per_stream": blocks(1),
        "blocks_while_prefilling": blocks(verdict["max_in_flight_tokens"]),
        "kv_bytes_per_stream": blocks(1) * block_bytes,
        "streams": fit,
        "kv_bytes_read_per_token": read,
        "bytes_read_per_step": step,
        "most_steps_per_second": bandwidth / step if bandwidth and fit else None,
    }


def weight_bytes(model: str) -> int | None:
    """Size of a model folder's weights; None where it is no folder."""
    files = list(Path(model).expanduser().glob("*.safetensors"))
    return sum(f.stat().st_size for f in files) if files else None


def pool_bytes(args: argparse.Namespace, weights: int | None) -> tuple[int, str]:
    """Bytes of the KV pool, and where the number comes from.

    Raises:
        PolicyError: there is no GPU and nothing was named, or nothing is left for KV.
    """
    if args.kv_gib is not None:
        return int(args.kv_gib * GIB), "named by --kv-gib"
    memory = gpu_memory() if args.gpu_gib is None else int(args.gpu_gib * GIB)
    if memory is None:
        raise PolicyError("--kv-gib", None, "a number of GiB, or --gpu-gib: there is no GPU here")
    if weights is None:
        raise PolicyError(
            "--kv-gib", None, f"a number of GiB: the weights of {args.model} are not in a folder"
        )
    left = memory * args.gpu_memory_utilization - weights - args.overhead_gib * GIB
    told = (
        f"{memory / GIB:.1f} GiB x {args.gpu_memory_utilization} - {weights / GIB:.2f} GiB of "
        f"weights - {args.overhead_gib} GiB of overhead"
    )
    if left <= 0:
        raise PolicyError("--gpu-gib", round(memory / GIB, 2), f"more: nothing is left ({told})")
    return int(left), told


def gpu_memory() -> int | None:
    """Bytes of this GPU; None without one."""
    import torch

    return int(torch.cuda.get_device_properties(0).total_memory) if _has_gpu() else None


def gpu_bandwidth() -> float | None:
    """Peak bytes a second of this GPU's memory, by its clock and bus; None where unknown."""
    import torch

    if not _has_gpu():
        return None
    properties = torch.cuda.get_device_properties(0)
    clock = getattr(properties, "memory_clock_rate", 0)  # kHz
    bus = getattr(properties, "memory_bus_width", 0)  # bits
    # Twice: data on both edges of the clock.
    return 2 * clock * 1e3 * bus / 8 or None


def _has_gpu() -> bool:
    import torch

    return bool(torch.cuda.is_available())


def render(plan: dict[str, Any]) -> str:
    """The plan for people."""
    lines = [
        f"{plan['model']}: {plan['dtype']}, {plan['kv_bytes_per_token'] / 1024:,.1f} KiB of KV a "
        f"token, blocks of {plan['block_size']} tokens, {plan['sink_tokens']} sink tokens",
        f"KV pool: {plan['kv_pool_bytes'] / GIB:,.2f} GiB ({plan['kv_pool']})",
        "",
        f"{'window':>8} {'blocks':>7} {'prefilling':>10} {'KV/stream':>11} {'streams':>8} "
        f"{'read/token':>11} {'read/step':>10} {'steps/s':>8}",
    ]
    for one in plan["windows"]:
        steps = one["most_steps_per_second"]
        lines.append(
            f"{one['window_tokens']:>8,} {one['blocks_per_stream']:>7,} "
            f"{one['blocks_while_prefilling']:>10,} "
            f"{one['kv_bytes_per_stream'] / MIB:>7,.1f} MiB {one['streams']:>8,} "
            f"{one['kv_bytes_read_per_token'] / MIB:>7,.1f} MiB "
            f"{one['bytes_read_per_step'] / GIB:>6,.2f} GiB "
            f"{'–' if steps is None else f'{steps:,.0f}':>8}"
        )
    lines += [
        "",
        f"streams: endless ones, in {DEFAULT_STREAM_SHARE:g} of the pool "
        f"({FLAGS['stream_share']}); the rest is for requests that end.",
        "read/token: KV that one stream reads for a token. read/step: the weights, and the KV of "
        "all streams that fit.",
        "steps/s: tokens a second of each of them if memory were the only limit"
        + ("." if plan["bandwidth_bytes"] else "; name --bandwidth to see it."),
    ]
    return "\n".join(lines)
