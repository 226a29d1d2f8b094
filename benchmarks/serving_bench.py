"""Both engines of ``benchmarks.serving``: started side by side, timed in turns."""

from __future__ import annotations

import argparse
import os
import statistics
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.serving_arguments import budget
from benchmarks.serving_engine import Side
from benchmarks.serving_sizes import Sizes, require_memory
from benchmarks.serving_times import Clock, summary

# In this process: two engines take turns on one GPU, a step at a time.
os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# On CPUs vLLM would bind both engines to the same core, and set each pool to this many GiB.
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
os.environ.pop("VLLM_CPU_KVCACHE_SPACE", None)


class Bench:
    """The engines of a run, and its results so far."""

    def __init__(self, args: argparse.Namespace, folder: Path) -> None:
        import torch

        self.args = args
        self.folder = folder
        self.clock = Clock()
        self.gpu = torch.cuda.is_available()
        self.itemsize = getattr(torch, args.dtype).itemsize
        native = args.shape.native_context
        far = max(args.indices) + budget(args, 1, 1, 0) if args.experiment == "flat" else 0
        self.sizes = Sizes(
            sink_tokens=args.sink_tokens,
            window_tokens=args.window_tokens,
            block_size=args.block_size or (16 if self.gpu else 32),
            chunk=args.chunk,
            max_model_len=max(native, far),
        )
        self.sides: dict[str, Side] = {}
        self.groups: list[dict[str, Any]] = []

    def start(self, pools: dict[str, int]) -> None:
        """Start an engine with this many KV blocks for each side, the policy's first.

        vLLM reads its environment once, for the first engine, and the policy sets it to allow
        streams longer than the model's context.
        """
        args, size = self.args, self.sizes.block_size
        if self.gpu:
            import torch

            free = torch.cuda.mem_get_info()[0]
            try:
                require_memory(args.shape, [*pools.values()], size, self.itemsize, free)
            except ValueError as error:
                raise SystemExit(
                    f"--layers: {args.shape.layers} is not allowed; allowed: {error}"
                ) from None
        for name, blocks in pools.items():
            with self.clock.phase(f"start {name}"):
                self.sides[name] = self._engine(name, blocks)
        told = {name: side.shared_settings() for name, side in self.sides.items()}
        for name, settings in told.items():
            unlike = {k for k, v in settings.items() if v != told["sink"][k]}
            if unlike:
                raise SystemExit(f"{name} and sink differ in {', '.join(sorted(unlike))}: {told}")

    def _engine(self, name: str, blocks: int) -> Side:
        from vllm import LLM

        args, sizes = self.args, self.sizes
        settings: dict[str, Any] = {}
        window = args.window_tokens if name == "stock sliding window" else None
        if name == "sink":
            kv_policy = {
                "name": "sink",
                "sink_tokens": args.sink_tokens,
                "window_tokens": args.window_tokens,
            }
            if args.sink_attention:
                kv_policy["sink_attention"] = args.sink_attention
            settings["additional_config"] = {"kv_policy": kv_policy}
        if args.eager or not self.gpu:
            settings["enforce_eager"] = True
        else:
            # The graphs that are used; vLLM would also capture those of every size between.
            settings["compilation_config"] = {"cudagraph_capture_sizes": args.batch}
        path = self.folder / name.replace(" ", "-")
        path.mkdir()
        llm = LLM(
            str(args.shape.write(path, window)),
            load_format="dummy",
            skip_tokenizer_init=True,
            generation_config="vllm",
            dtype=args.dtype,
            block_size=sizes.block_size,
            max_model_len=sizes.max_model_len,
            max_num_batched_tokens=args.chunk,
            max_num_seqs=max(args.batch),
            kv_cache_memory_bytes=blocks * args.shape.block_bytes(sizes.block_size, self.itemsize),
            # With the KV memory named, only asked to be free when the engine starts; the other
            # engine's memory is not.
            gpu_memory_utilization=0.05,
            disable_log_stats=True,
            **settings,
        )
        side = Side(llm, seed=len(self.sides))
        for layer in side.attention():
            if name != "sink" and layer.sliding_window != window:
                raise SystemExit(
                    f"--shape: {args.shape.name} is not allowed; allowed: a model whose stock "
                    f"attention takes sliding_window {window} from its config; a layer has "
                    f"{layer.sliding_window}"
                )
        return side

    def stop(self) -> None:
        """Take the engines down."""
        for side in self.sides.values():
            side.engine.engine_core.shutdown()

    def compare(self, label: str, measures: Mapping[str, Callable[[], float]], tokens: int) -> None:
        """Time both sides in turn and add the result.

        The ratio is the first side's median over the second's; the paired one is the median of the
        rounds' own ratios, which a drift in speed does not affect.
        """
        from tqdm import tqdm

        with self.clock.phase(label):
            for measure in measures.values():
                measure()  # one-time work happens here
            told: dict[str, list[float]] = {name: [] for name in measures}
            for i in tqdm(range(self.args.rounds), desc=label, unit="round"):
                for name in list(measures) if i % 2 == 0 else reversed(list(measures)):
                    told[name].append(1000 * measures[name]())
        first, second = told.values()
        self.groups.append(
            {
                "label": label,
                "sides": {name: summary(values, tokens) for name, values in told.items()},
                "ratio": statistics.median(first) / statistics.median(second),
                "paired_ratio": statistics.median(
                    [a / b for a, b in zip(first, second, strict=True)]
                ),
            }
        )

    def by_batch(self, batches: list[int], prompt_tokens: int, most: int, label: str) -> None:
        """Time per output token with ever fewer streams, largest batch first."""
        with self.clock.phase(f"prefill {batches[-1]} x {prompt_tokens:,}"):
            for side in self.sides.values():
                for _ in range(batches[-1]):
                    side.first(side.prompt(prompt_tokens), most)
        steps = self.args.steps
        for batch in reversed(batches):
            for side in self.sides.values():
                side.shrink(batch)
            self.compare(
                f"{label}batch {batch}",
                {name: partial(side.decode, steps) for name, side in self.sides.items()},
                batch,
            )
        for side in self.sides.values():
            side.shrink(0)
