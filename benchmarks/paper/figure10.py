"""Time per output token and memory against cache size: sinks or recomputation (Figure 10).

    python -m benchmarks.paper.figure10 --shape llama-2-13b --cache-tokens 4096 --batch 1 \\
        --json out.json

Sliding window with recomputation recomputes the whole cache for each token: here a prompt of
that length on stock vLLM, answered by one token. The sink policy decodes. Two engines in one
process take turns; weights are dummies. A picture is written beside the JSON.
"""

from __future__ import annotations

import argparse
import gc
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import record
from benchmarks.paper import pictures
from benchmarks.serving_arguments import PAST_WINDOW, numbers
from benchmarks.serving_bench import Bench
from benchmarks.serving_engine import LEAD
from benchmarks.serving_shapes import SHAPES, Shape

SINK, RECOMPUTE = "sink", "recomputation"


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="benchmarks.paper.figure10",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--shape", required=True, help=f"{', '.join(SHAPES)}, or a model's folder")
    add("--layers", type=int, help="fewer layers than the shape has, so that more streams fit")
    add(
        "--cache-tokens",
        type=numbers,
        default=[256, 512, 1024, 2048, 4096],
        help="S + W, several comma-separated",
    )
    add("--batch", type=int, default=1, help="streams at once")
    add("--sink-tokens", type=int, default=4)
    add("--rounds", type=int, default=5, help="of each side, alternating")
    add("--steps", type=int, default=16, help="decode steps of a round")
    add("--chunk", type=int, default=8192, help="maximum tokens of a step (max_num_batched_tokens)")
    add("--block-size", type=int, help="tokens of a KV block; default: 16, on CPUs 32")
    add("--dtype", choices=("bfloat16", "float16", "float32"), default="bfloat16")
    add("--json", required=True, type=Path, help="where the result goes")
    args = parser.parse_args()
    try:
        args.shape = Shape.read(args.shape)
    except ValueError as error:
        parser.error(f"--shape: {args.shape} is not allowed; allowed: {error}")
    rules = {
        "layers": (args.layers is None or args.layers > 0, "at least 1"),
        "batch": (args.batch > 0, "at least 1"),
        "rounds": (args.rounds > 1, "at least 2"),
        "steps": (args.steps > 0, "at least 1"),
        "chunk": (args.chunk >= args.batch, "at least the batch"),
        "sink_tokens": (
            0 <= args.sink_tokens < args.cache_tokens[0],
            f"0 to {args.cache_tokens[0] - 1}, less than the cache",
        ),
    }
    for flag, (good, allowed) in rules.items():
        if not good:
            name = flag.replace("_", "-")
            parser.error(f"--{name}: {getattr(args, flag)} is not allowed; allowed: {allowed}")
    if args.layers:
        args.shape = args.shape.with_layers(args.layers)
    return args


def one_size(args: argparse.Namespace, cache: int, folder: Path) -> dict[str, Any]:
    """Both sides at one size of the cache."""
    prompt = cache + PAST_WINDOW
    coming_in = args.batch * (prompt // args.chunk + 3)
    most = coming_in + (args.rounds + 2) * (LEAD + args.steps) + 16
    told = argparse.Namespace(
        **vars(args) | {"batch": [args.batch]},
        experiment="recompute",
        window_tokens=cache - args.sink_tokens,
        sink_attention=None,
        eager=False,
    )
    told.shape = args.shape.with_context(prompt + most)
    bench = Bench(told, folder)
    # Prompts that a step can prefill, whole or in part, and one more; the others wait.
    at_once = min(args.batch, args.chunk // cache + 2)
    whole = bench.sizes.full_pool(at_once * (cache + bench.sizes.block_size))
    pools = {SINK: bench.sizes.window_pool(args.batch, prompt), RECOMPUTE: whole}
    try:
        bench.start(pools)
        sink, other = bench.sides[SINK], bench.sides[RECOMPUTE]
        with bench.clock.phase(f"cache {cache:,}: prefill {args.batch} x {prompt:,}"):
            for _ in range(args.batch):
                sink.first(sink.prompt(prompt), most)
        sink.most_blocks = other.most_blocks = 0
        measures = {
            RECOMPUTE: partial(other.prefill, args.batch, cache),
            SINK: partial(sink.decode, args.steps),
        }
        bench.compare(f"cache {cache:,}, batch {args.batch}", measures, args.batch)
        sink.shrink(0)
        (group,) = bench.groups
        for name, side in bench.sides.items():
            group["sides"][name]["kv_bytes"] = side.most_blocks * side.block_bytes()
        return {
            "cache_tokens": cache,
            **group,
            "weight_bytes": told.shape.weight_bytes(bench.itemsize),
            "engines": {name: side.settings() for name, side in bench.sides.items()},
        }
    finally:
        bench.stop()


def forget() -> None:
    """Free the memory of engines that are no longer referenced, for those of the next size."""
    from vllm.distributed.parallel_state import cleanup_dist_env_and_memory

    gc.collect()
    cleanup_dist_env_and_memory()


def main() -> None:
    args = parse_args()
    sizes = []
    for cache in args.cache_tokens:
        with tempfile.TemporaryDirectory(prefix="figure10-") as folder:
            sizes.append(one_size(args, cache, Path(folder)))
        forget()
    result = {
        "benchmark": "figure10",
        "shape": args.shape.name,
        "layers": args.shape.layers,
        "model": args.shape.config,
        "dtype": args.dtype,
        "batch": args.batch,
        "sink_tokens": args.sink_tokens,
        "rounds": args.rounds,
        "steps": args.steps,
        "seed": 0,
        "hardware": record.provenance()["hardware"],
        "sizes": sizes,
    }
    record.write(args.json, result)
    pictures.time_and_memory(result, args.json.with_suffix(".png"))
    for size in sizes:
        sink, other = size["sides"][SINK], size["sides"][RECOMPUTE]
        print(
            f"cache {size['cache_tokens']:6,}, batch {args.batch}: sink {sink['median_ms']:.2f} ms,"
            f" recomputation {other['median_ms']:.2f} ms, {size['ratio']:.1f}x; KV "
            f"{sink['kv_bytes'] / 2**20:.0f} and {other['kv_bytes'] / 2**20:.0f} MiB"
        )


if __name__ == "__main__":
    main()
