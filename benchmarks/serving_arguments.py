"""Arguments of ``benchmarks.serving``, and their ranges by experiment."""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.serving_engine import LEAD
from benchmarks.serving_shapes import SHAPES, Shape

#: Tokens of a prompt past the window, so that something is evicted already.
PAST_WINDOW = 64

EXPERIMENTS = ("tpot", "ttft", "full", "flat")
ROUNDS = {"tpot": 15, "ttft": 5, "full": 9, "flat": 9}
STEPS = {"tpot": 32, "full": 32, "flat": 64}
BATCHES = {"tpot": [1, 32], "full": [1, 4]}


def numbers(text: str) -> list[int]:
    """``1,32`` as a sorted list."""
    parts = text.split(",")
    if not all(part.isdecimal() and int(part) for part in parts):
        raise argparse.ArgumentTypeError(
            f"{text} is not allowed; allowed: numbers from 1 on with commas between, as in 1,32"
        )
    return sorted({int(part) for part in parts})


def parse_args(description: str) -> argparse.Namespace:
    """The command line of ``benchmarks.serving``."""
    parser = argparse.ArgumentParser(
        prog="benchmarks.serving",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--experiment", required=True, choices=EXPERIMENTS)
    add("--shape", required=True, help=f"{', '.join(SHAPES)}, or a model's folder")
    add("--layers", type=int, help="fewer layers than the shape has, so that more streams fit")
    add("--batch", type=numbers, help="tpot (default 1,32), full (1,4): concurrent streams")
    add("--sink-tokens", type=int, default=4)
    add("--window-tokens", type=int, default=4096)
    add("--sink-attention", help="the policy's attention provider; default: the engine's choice")
    add("--prompt-tokens", type=int, default=32_768, help="ttft: length of the prompt")
    add("--contexts", type=numbers, default=[32_768, 131_072], help="full: lengths of a stream")
    add("--indices", type=numbers, default=[10_000, 100_000], help="flat: the stream's indices")
    add("--kv-gib", type=int, default=40, help="full: the KV memory to fit streams into")
    add("--rounds", type=int, help=f"rounds of each side; default: {ROUNDS}")
    add("--steps", type=int, help=f"timed steps of a round; default: {STEPS}")
    add("--chunk", type=int, default=8192, help="maximum tokens of a step (max_num_batched_tokens)")
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
    """Tokens that a stream decodes at most: while others are admitted, and in all rounds."""
    coming_in = streams * (prompt_tokens // args.chunk + 3)
    return coming_in + batches * (args.rounds + 1) * (LEAD + args.steps) + 16
