"""Waiting requests add nothing to a step: the scheduler's time with and without them.

    python -m benchmarks.scheduling --model DIR --json out.json

vLLM's real scheduler under the policy, with simulated model outputs: streams that decode, and
beside them ``--waiting`` requests that do not fit. Two schedulers take turns, one with the queue
and one without, a few steps each, so that a machine that slows down slows both; medians over all
turns, and the spread of their ratio. Waiting prompts share a stream's prefix, so that prefix
lookups find cached blocks.
"""

from __future__ import annotations

import argparse
import os
import random
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import record

os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="benchmarks.scheduling",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", required=True, help="a model folder, for its config")
    parser.add_argument("--streams", type=int, default=256)
    parser.add_argument("--waiting", type=int, default=1000)
    parser.add_argument("--window-tokens", type=int, default=1024)
    parser.add_argument("--waiting-tokens", type=int, default=2000, help="of each prompt")
    parser.add_argument("--turns", type=int, default=100)
    parser.add_argument("--steps", type=int, default=20, help="between two turns")
    parser.add_argument("--json", required=True, type=Path)
    return parser.parse_args()


class Side:
    """One scheduler, and the seconds of its steps."""

    def __init__(self, args: argparse.Namespace) -> None:
        from vllm.engine.arg_utils import EngineArgs
        from vllm.utils.hashing import get_hash_fn_by_name
        from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
        from vllm.v1.kv_cache_interface import KVCacheConfig, KVCacheGroupSpec
        from vllm.v1.structured_output import StructuredOutputManager

        from vllm_sink.cache.spec import SinkWindowSpec
        from vllm_sink.engine.scheduler import SinkScheduler

        config = EngineArgs(
            model=args.model,
            max_num_seqs=2 * args.streams,
            max_num_batched_tokens=8192,
            additional_config={
                "kv_policy": {"name": "sink", "window_tokens": args.window_tokens},
                "sink_admission": {"max_streams": args.streams, "stream_share": 1.0},
            },
        ).create_engine_config()
        size = config.cache_config.block_size
        spec = SinkWindowSpec(
            block_size=size,
            num_kv_heads=1,
            head_size=32,
            dtype=config.model_config.dtype,
            sink_tokens=4,
            window_tokens=args.window_tokens,
        )
        # The streams' windows, and less than a waiting prompt needs.
        blocks = args.streams * spec.max_blocks(spec.default, 1, 1 << 40) + 32
        config.cache_config.num_gpu_blocks = blocks
        self.scheduler = SinkScheduler(
            vllm_config=config,
            kv_cache_config=KVCacheConfig(blocks, [], [KVCacheGroupSpec(["layer"], spec)]),
            structured_output_manager=StructuredOutputManager(config),
            block_size=size,
        )
        hash_fn = get_hash_fn_by_name("sha256")
        init_none_hash(hash_fn)
        self._hasher = get_request_block_hasher(size, hash_fn)
        self.seconds: list[float] = []
        self._rng = random.Random(0)
        self.shared = [self._rng.randrange(1000) for _ in range(args.waiting_tokens)]

    def add(self, name: str, prompt: list[int], stream: bool) -> None:
        from vllm.sampling_params import SamplingParams
        from vllm.v1.request import Request

        from vllm_sink.requests.core_request import ServerFields, set_server_fields

        request = Request(
            name,
            prompt,
            SamplingParams(max_tokens=1 << 28 if stream else 4, ignore_eos=True),
            None,
            block_hasher=self._hasher,
        )
        set_server_fields(request, ServerFields(stream=stream, served=True))
        self.scheduler.add_request(request)

    def step(self) -> float:
        """Seconds of one step's scheduling and bookkeeping."""
        from vllm.v1.outputs import ModelRunnerOutput

        begin = time.perf_counter()
        output = self.scheduler.schedule()
        middle = time.perf_counter()
        names = list(output.num_scheduled_tokens)
        tokens = []
        for name in names:
            request = self.scheduler.requests[name]
            decodes = request.num_computed_tokens >= request.num_tokens
            tokens.append([self._rng.randrange(1000)] if decodes else [])
        made = ModelRunnerOutput(names, {name: i for i, name in enumerate(names)}, tokens)
        later = time.perf_counter()
        self.scheduler.update_from_output(output, made)
        return middle - begin + time.perf_counter() - later


def main() -> None:
    args = parse_args()
    from tqdm import tqdm

    from vllm_sink.plugin import register

    register()
    sides = {"none waits": Side(args), f"{args.waiting} wait": Side(args)}
    queued = sides[f"{args.waiting} wait"]
    for side in sides.values():
        for i in range(args.streams):
            side.add(f"stream {i}", [i, *side.shared[: 256 + i]], stream=True)
        for _ in range(args.window_tokens + 600):
            side.step()
    for i in range(args.waiting):
        queued.add(f"waits {i}", [0, *queued.shared, i], stream=False)
    bar = tqdm(total=args.turns, desc="turns", unit="turn")
    ratios = []
    for _ in range(args.turns):
        turn = {}
        for name, side in sides.items():
            steps = [side.step() for _ in range(args.steps)]
            side.seconds += steps
            turn[name] = sum(steps)
        plain, waiting = turn.values()
        ratios.append(waiting / plain)
        bar.update()
    bar.close()
    assert len(queued.scheduler.waiting) == args.waiting
    result: dict[str, Any] = {
        "benchmark": "scheduling",
        "streams": args.streams,
        "waiting": args.waiting,
        "waiting_prompt_tokens": args.waiting_tokens,
        "window_tokens": args.window_tokens,
        "step_ms": {name: _spread(side.seconds) for name, side in sides.items()},
        "ratio": {
            "median": float(np.median(ratios)),
            "quartiles": [float(q) for q in np.quantile(ratios, [0.25, 0.75])],
        },
    }
    record.write(args.json, result)
    _draw(args.json.with_suffix(".png"), sides, result)
    print(result["step_ms"], result["ratio"])


def _spread(seconds: list[float]) -> dict[str, float]:
    low, median, high = np.quantile(seconds, [0.05, 0.5, 0.95]) * 1e3
    return {"median": float(median), "p05": float(low), "p95": float(high)}


def _draw(path: Path, sides: dict[str, Side], result: dict[str, Any]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 3.2))
    top = np.quantile(np.concatenate([side.seconds for side in sides.values()]), 0.99)
    for name, side in sides.items():
        axes.hist(
            np.array(side.seconds) * 1e3, bins=80, range=(0, top * 1e3), alpha=0.6, label=name
        )
    axes.set_xlabel("scheduling of a step, ms")
    axes.set_ylabel("steps")
    axes.set_title(
        f"{result['streams']} streams: a step with {result['waiting']} requests waiting takes "
        f"{result['ratio']['median']:.3f} of one with none",
        fontsize=9,
    )
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=140)


if __name__ == "__main__":
    main()
