"""Your text, your model: perplexity of sinks, a window alone and full attention in one picture.

    python -m benchmarks.paper.yours --text FILE [--model DIR]

Any UTF-8 text and any model that the policy supports. Three engines read it one after the other,
teacher-forced; the picture and a JSON file are in ``--out``. Full attention takes time that grows
with the square of the text, so it reads the first ``--full-tokens`` only: by default one and a half
times the model's context.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path
from typing import Any

from benchmarks import engines, quality, record
from benchmarks.paper import pictures, runs

POLICIES = ("sink", "window", "full")


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="benchmarks.paper.yours",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--text", required=True, type=Path, help="any UTF-8 text")
    add("--model", default=runs.MODEL, help="a model folder or name; default: what make model made")
    add("--tokens", type=int, help="read the first N tokens; default: all, at most 24,576")
    add("--full-tokens", type=int, help="what full attention reads; default: 1.5 times its context")
    add("--sink-tokens", type=int, default=4)
    add("--window-tokens", type=int, default=509)
    add("--dtype", default="float32")
    add("--chunk", type=int, default=1024, help="tokens of a prefill chunk")
    add("--bin", type=int, help="tokens of a point of the curves; default: 80 points")
    add("--out", type=Path, default=Path("benchmarks/out/yours"), help="a folder")
    args = parser.parse_args()
    rules = {
        "tokens": (args.tokens is None or args.tokens > 1, "at least 2"),
        "full_tokens": (args.full_tokens is None or args.full_tokens > 1, "at least 2"),
        "sink_tokens": (args.sink_tokens >= 0, "0 or more"),
        "window_tokens": (args.window_tokens > 0, "at least 1"),
        "chunk": (args.chunk > 0, "at least 1"),
        "bin": (args.bin is None or args.bin > 0, "at least 1"),
    }
    for flag, (good, allowed) in rules.items():
        if not good:
            name = flag.replace("_", "-")
            parser.error(f"--{name}: {getattr(args, flag)} is not allowed; allowed: {allowed}")
    return args


def read(args: argparse.Namespace) -> tuple[list[int], int]:
    """The text's tokens and the model's context, before any engine starts.

    Raises:
        SystemExit: naming what is wrong with the model, the text or the window.
    """
    from transformers import AutoTokenizer

    try:
        native = engines.native_context(args.model)
        tokenizer = AutoTokenizer.from_pretrained(args.model)
    except (OSError, ValueError, AttributeError) as error:
        raise SystemExit(
            f"--model: {args.model} is not allowed; allowed: a folder with a model, or a model's "
            f"name ({str(error).splitlines()[0]}); `make model` makes {runs.MODEL}"
        ) from None
    if args.sink_tokens + args.window_tokens > native:
        raise SystemExit(
            f"--window-tokens: {args.window_tokens} is not allowed; allowed: 1 to "
            f"{native - args.sink_tokens}: with {args.sink_tokens} sinks it must fit the "
            f"{native:,} positions that the model has learned"
        )
    if args.tokens is None:
        tokens = engines.tokens_up_to(tokenizer, args.text, runs.SHORT)
    else:
        tokens = engines.read_tokens(tokenizer, args.text, args.tokens)
    if len(tokens) <= args.sink_tokens + args.window_tokens:
        raise SystemExit(
            f"--text: {args.text} is not allowed; allowed: more than the {args.sink_tokens} + "
            f"{args.window_tokens} tokens that the policy keeps; it has {len(tokens)}, so nothing "
            "would be evicted"
        )
    return tokens, native


def measure(args: argparse.Namespace, policy: str, tokens: list[int], native: int) -> Any:
    """One policy's curve, as ``benchmarks.quality`` writes it."""
    from vllm_sink.errors import PolicyError, UnsupportedError

    size = args.sink_tokens + args.window_tokens
    sinks, window = {
        "sink": (args.sink_tokens, args.window_tokens),
        "window": (0, size),
        "full": (None, None),
    }[policy]
    kv_policy = {"name": policy, "sink_tokens": sinks, "window_tokens": window}
    try:
        llm = engines.start(
            args.model, kv_policy, len(tokens) + 1, dtype=args.dtype, chunk=args.chunk
        )
    except (PolicyError, UnsupportedError) as error:
        raise SystemExit(f"--model: {args.model} is not allowed: {error}") from None
    begin = time.perf_counter()
    logprobs = quality.score(llm, tokens, policy)
    engines.stop(llm)
    return {
        "policy": policy,
        "model": Path(args.model).name,
        "dtype": args.dtype,
        "sink_tokens": sinks or 0,
        "window_tokens": window,
        "native_context": native,
        "tokens": len(tokens),
        "seconds": time.perf_counter() - begin,
        "perplexity": math.exp(-math.fsum(logprobs) / len(logprobs)),
        "curve": quality.curve(logprobs, args.bin or max(32, len(tokens) // 80)),
    }


def draw(result: dict[str, Any], path: Path) -> None:
    """The curves in one picture."""
    from matplotlib import pyplot

    shown = list(result["curves"].values())
    figure, axes = pyplot.subplots(figsize=(9, 4.4))
    pictures.curves(axes, shown, [pictures.COLORS[r["policy"]] for r in shown])
    axes.set_ylabel("perplexity (lower is better)")
    axes.set_title(f"{shown[0]['model']} reads {result['tokens']:,} tokens of {result['text']}")
    axes.legend(frameon=False, fontsize=9)
    figure.tight_layout()
    figure.savefig(path, dpi=130)


def main() -> None:
    args = parse_args()
    tokens, native = read(args)
    curves = {}
    for policy in POLICIES:
        most = args.full_tokens or 3 * native // 2
        part = tokens[:most] if policy == "full" else tokens
        curves[policy] = measure(args, policy, part, native)
    result = {
        "benchmark": "yours",
        "text": args.text.name,
        "tokens": len(tokens),
        "seed": engines.SEED,
        "curves": curves,
    }
    json_path = args.out / f"{args.text.stem}.json"
    record.write(json_path, result)
    picture = json_path.with_suffix(".png")
    draw(result, picture)
    for policy, curve in curves.items():
        last = curve["curve"][-1]
        print(
            f"{policy:7} perplexity {curve['perplexity']:10.2f} over {curve['tokens']:,} tokens, "
            f"{last['perplexity']:.2f} at the end"
        )
    print(f"-> {picture}, {json_path}")


if __name__ == "__main__":
    main()
