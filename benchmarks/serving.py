"""vLLM end to end: the policy beside stock vLLM, two engines in one process that take turns.

    python -m benchmarks.serving --experiment tpot --shape llama-3-8b --batch 1,32 --json out.json

``tpot``: time per output token, against stock vLLM with an equal sliding window, by batch size.
``ttft``: time to the first token of a long prompt, against the same.
``full``: time per output token against stock full attention at a true context, and how many streams
of that length fit into a given KV memory.
``flat``: the policy alone, far into a stream against near its start.

Engines are stepped by hand, in rounds that alternate between the two sides; the GPU is idle at the
start of each. Weights are made up, prompts are random and nothing is decoded into text. Beside the
JSON stands a picture.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import record
from benchmarks.serving_shapes import (
    GIB,
    LEAD,
    SHAPES,
    Clock,
    Shape,
    Side,
    Sizes,
    require_memory,
    summary,
)

# In this process: two engines take turns on one GPU, a step at a time.
os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# On CPUs vLLM would bind both engines to the same core, and set each pool to this many GiB.
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
os.environ.pop("VLLM_CPU_KVCACHE_SPACE", None)

#: Tokens of a prompt past the window, so that something is evicted already.
PAST_WINDOW = 64

EXPERIMENTS = ("tpot", "ttft", "full", "flat")
ROUNDS = {"tpot": 15, "ttft": 5, "full": 9, "flat": 9}
STEPS = {"tpot": 32, "full": 32, "flat": 64}
BATCHES = {"tpot": [1, 32], "full": [1, 4]}

#: What the other side is called, by experiment.
OTHER = {"tpot": "stock sliding window", "ttft": "stock sliding window", "full": "stock full"}


def numbers(text: str) -> list[int]:
    """``1,32`` as a sorted list."""
    parts = text.split(",")
    if not all(part.isdecimal() and int(part) for part in parts):
        raise argparse.ArgumentTypeError(
            f"{text} is not allowed; allowed: numbers from 1 on with commas between, as in 1,32"
        )
    return sorted({int(part) for part in parts})


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="benchmarks.serving",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--experiment", required=True, choices=EXPERIMENTS)
    add("--shape", required=True, help=f"{', '.join(SHAPES)}, or a model's folder")
    add("--layers", type=int, help="fewer layers than the shape has, so that more streams fit")
    add("--batch", type=numbers, help="tpot (default 1,32), full (1,4): streams at once")
    add("--sink-tokens", type=int, default=4)
    add("--window-tokens", type=int, default=4096)
    add("--sink-attention", help="the policy's attention provider; default: the engine's choice")
    add("--prompt-tokens", type=int, default=32_768, help="ttft: length of the prompt")
    add("--contexts", type=numbers, default=[32_768, 131_072], help="full: lengths of a stream")
    add("--indices", type=numbers, default=[10_000, 100_000], help="flat: where the stream stands")
    add("--kv-gib", type=int, default=40, help="full: the KV memory that streams shall fit into")
    add("--rounds", type=int, help=f"rounds of each side; default: {ROUNDS}")
    add("--steps", type=int, help=f"timed steps of a round; default: {STEPS}")
    add("--chunk", type=int, default=8192, help="most tokens of a step (max_num_batched_tokens)")
    add("--block-size", type=int, help="tokens of a KV block; default: 16, on CPUs 32")
    add("--dtype", choices=("bfloat16", "float16", "float32"), default="bfloat16")
    add("--eager", action="store_true", help="neither compiled nor CUDA graphs; CPUs are always")
    add("--json", required=True, type=Path, help="where the result goes")
    args = parser.parse_args()
    name = args.experiment
    args.batch = args.batch or BATCHES.get(name, [1])
    args.rounds = ROUNDS[name] if args.rounds is None else args.rounds
    args.steps = STEPS.get(name, 1) if args.steps is None else args.steps
    try:
        shape = Shape.read(args.shape)
    except ValueError as error:
        parser.error(f"--shape: {args.shape} is not allowed; allowed: {error}")
    args.shape = shape if args.layers is None or args.layers < 1 else shape.with_layers(args.layers)
    for flag, allowed in _refused(args).items():
        value = getattr(args, flag)
        parser.error(f"--{flag.replace('_', '-')}: {value} is not allowed; allowed: {allowed}")
    return args


def _refused(args: argparse.Namespace) -> dict[str, str]:
    """Which arguments are out of range, and what their range is."""
    name, native = args.experiment, args.shape.native_context
    room = native - args.sink_tokens
    rules = {
        "layers": (args.layers is None or args.layers > 0, "at least 1"),
        "rounds": (args.rounds > 1, "at least 2"),
        "steps": (args.steps > 0, "at least 1"),
        "sink_tokens": (0 <= args.sink_tokens < native, f"0 to {native - 1}"),
        "window_tokens": (0 < args.window_tokens <= room, f"1 to {room}, the model's context"),
        "chunk": (args.chunk >= max(args.batch), "at least the largest batch"),
        "block_size": (args.block_size is None or args.block_size > 0, "at least 1"),
        "kv_gib": (args.kv_gib > 0, "at least 1"),
        "batch": (name in BATCHES or args.batch == [1], "1, in this experiment"),
    }
    if name == "ttft":
        most = native - 1
        rules["prompt_tokens"] = (0 < args.prompt_tokens <= most, f"1 to {most}, the context")
    if name == "full":
        need = budget(args, len(args.batch), args.batch[-1], args.contexts[0])
        rules["contexts"] = (
            args.contexts[-1] <= native and args.contexts[0] > need + args.sink_tokens,
            f"{need + args.sink_tokens + 1} to {native}: a stream decodes {need} tokens",
        )
        rules["batch"] = (args.batch[0] == 1, "1 and more: the longest context has one stream")
    if name == "flat":
        least = args.sink_tokens + args.window_tokens
        rules["indices"] = (
            len(args.indices) > 1 and args.indices[0] >= least,
            f"two or more from {least} on, where the window is full",
        )
    if name == "tpot":
        need = budget(args, len(args.batch), args.batch[-1], args.window_tokens + PAST_WINDOW)
        most = native - need - PAST_WINDOW
        rules["window_tokens"] = (
            0 < args.window_tokens <= min(room, most),
            f"1 to {min(room, most)}: after it a stream decodes {need} tokens of the context",
        )
    return {flag: allowed for flag, (good, allowed) in rules.items() if not good}


def budget(args: argparse.Namespace, batches: int, streams: int, prompt_tokens: int) -> int:
    """Tokens that a stream decodes at most: while others come in, and in all rounds."""
    coming_in = streams * (prompt_tokens // args.chunk + 3)
    return coming_in + batches * (args.rounds + 1) * (LEAD + args.steps) + 16


class Bench:
    """The engines of a run, and what it has found so far."""

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
        """Start an engine with so many KV blocks for each side, the policy's first.

        vLLM reads its environment for good when the first engine stands, and the policy asks it to
        allow streams longer than the model's context.
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
        """Time both sides in turn and add what came out.

        The ratio is the first side's median over the second's; the paired one is the median of the
        rounds' own ratios, which a drift of the clock leaves alone.
        """
        from tqdm import tqdm

        with self.clock.phase(label):
            for measure in measures.values():
                measure()  # whatever happens once happens here
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


def tpot(bench: Bench) -> dict[str, Any]:
    args, prompt = bench.args, bench.args.window_tokens + PAST_WINDOW
    pool = bench.sizes.window_pool(args.batch[-1], prompt)
    bench.start({"sink": pool, OTHER["tpot"]: pool})
    most = budget(args, len(args.batch), args.batch[-1], prompt)
    bench.by_batch(args.batch, prompt, most, "")
    return {"prompt_tokens": prompt}


def ttft(bench: Bench) -> dict[str, Any]:
    tokens = bench.args.prompt_tokens
    pool = bench.sizes.window_pool(1, tokens)
    bench.start({"sink": pool, OTHER["ttft"]: pool})
    measures = {name: partial(side.first_token, tokens) for name, side in bench.sides.items()}
    bench.compare(f"first token of {tokens:,}", measures, tokens)
    return {"prompt_tokens": tokens}


def full(bench: Bench) -> dict[str, Any]:
    args, sizes = bench.args, bench.sizes
    # Every batch that full attention can hold where it can hold one stream of the longest.
    runs = {c: [b for b in args.batch if b * c <= args.contexts[-1]] for c in args.contexts}
    bench.start(
        {
            "sink": sizes.window_pool(args.batch[-1], args.contexts[-1]),
            OTHER["full"]: sizes.full_pool(max(max(b) * c for c, b in runs.items())),
        }
    )
    size = bench.sides["sink"].block_bytes()
    streams = []
    for context, batches in runs.items():
        streams.append(
            {"context": context, "kv_gib": args.kv_gib}
            | sizes.streams_that_fit(args.kv_gib * GIB, size, context)
        )
        # The stream ends at its context, so that the last round is not past what was asked for.
        most = budget(args, len(batches), batches[-1], context)
        bench.by_batch(batches, context - most, most, f"context {context:,}, ")
    return {"streams": streams}


def flat(bench: Bench) -> dict[str, Any]:
    """One engine. Before each round its stream comes back, all but its last tokens cached."""
    args, sizes = bench.args, bench.sizes
    steps, size = args.steps, sizes.block_size
    most = LEAD + steps + 8
    # Cached are the sinks and the last window of each; what a prefill leaves behind pushes out what
    # was cached longest. The longest comes first, and the pool holds the others whole.
    others = sum(index // size + 2 * LEAD for index in args.indices[:-1])
    bench.start({"sink": sizes.window_pool(2 * len(args.indices), args.chunk) + others})
    side = bench.sides["sink"]
    prompts = {index: side.prompt(index) for index in args.indices}

    def at(index: int) -> float:
        output = side.first(prompts[index], most)
        if output.num_cached_tokens < index - size:
            raise RuntimeError(f"only {output.num_cached_tokens} of {index} tokens were cached")
        seconds = side.decode(steps)
        side.shrink(0)
        return seconds

    with bench.clock.phase("prefill"):
        for index in reversed(args.indices):
            side.first(prompts[index], most)
            side.shrink(0)
    near = args.indices[0]
    for far in args.indices[1:]:
        measures = {f"index {index:,}": partial(at, index) for index in (far, near)}
        bench.compare(f"{far:,} against {near:,}", measures, 1)
    return {"indices": args.indices}


def draw(result: dict[str, Any], path: Path) -> None:
    """The rounds of each side, a panel for each comparison."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    groups = result["groups"]
    figure, panels = pyplot.subplots(
        1, len(groups), figsize=(1.5 + 3.3 * len(groups), 4.5), squeeze=False
    )
    for axes, group in zip(panels[0], groups, strict=True):
        sides = group["sides"]
        axes.boxplot([s["rounds_ms"] for s in sides.values()], whis=(0, 100), widths=0.5)
        axes.set_xticks(range(1, len(sides) + 1), [n.replace(" ", "\n", 1) for n in sides])
        axes.set_title(f"{group['label']}\nratio {group['ratio']:.3f}", fontsize=10)
    panels[0][0].set_ylabel(f"{result['what']} (ms)")
    figure.suptitle(
        f"{result['shape']}, {result['layers']} layers, {result['dtype']}: "
        f"S {result['sink_tokens']}, W {result['window_tokens']}"
    )
    figure.tight_layout()
    figure.savefig(path, dpi=130)


def show(result: dict[str, Any]) -> None:
    """The result as tables."""
    print(f"{result['what']}, {result['shape']}, {result['layers']} layers, {result['dtype']}")
    print(f"{'':28}{'side':24}{'median':>10}{'quartiles':>20}{'tokens/s':>10}{'ratio':>8}")
    for group in result["groups"]:
        for i, (name, s) in enumerate(group["sides"].items()):
            spread = f"{s['quartile1_ms']:.3f}-{s['quartile3_ms']:.3f}"
            print(
                f"{group['label'] if not i else '':28}{name:24}{s['median_ms']:7.3f} ms"
                f"{spread:>20}{s['tokens_per_second']:10.1f}"
                + (f"{group['ratio']:8.3f}" if not i else "")
            )
    for row in result.get("streams", []):
        print(
            f"{row['kv_gib']} GiB of KV, streams of {row['context']:,} tokens: {row['full']} with "
            f"full attention, {row['sink']} under the policy"
        )


def main() -> None:
    args = parse_args()
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="serving-") as folder:
        bench = Bench(args, Path(folder))
        experiment = {"tpot": tpot, "ttft": ttft, "full": full, "flat": flat}[args.experiment]
        try:
            found = experiment(bench)
            engines = {name: side.settings() for name, side in bench.sides.items()}
        finally:
            bench.stop()
    result = {
        "benchmark": "serving",
        "experiment": args.experiment,
        "what": "time to first token" if args.experiment == "ttft" else "time per output token",
        "shape": args.shape.name,
        "layers": args.shape.layers,
        "model": args.shape.config,
        "dtype": args.dtype,
        "sink_tokens": args.sink_tokens,
        "window_tokens": args.window_tokens,
        "rounds": args.rounds,
        "steps": args.steps,
        **found,
        "groups": bench.groups,
        "engines": engines,
        "phases_seconds": bench.clock.phases,
        "seconds": round(time.perf_counter() - begin, 1),
    }
    record.write(args.json, result)
    draw(result, args.json.with_suffix(".png"))
    show(result)
    print(f"{result['seconds']:.0f} s in all -> {args.json}")


if __name__ == "__main__":
    main()
