"""How much do the log-probabilities of two ways to compute the same attention differ?

    python -m benchmarks.providers --model DIR --text FILE --dtype bfloat16 --json out.json

Every provider of the policy scores the same text, token by token, and is compared with ``torch``.
vLLM unchanged gives the scale of that difference: its FlashAttention against its other kernels
and against PyTorch's scaled dot product attention, which transformers calls, over the same tokens
within the model's context. Every side runs in a process of its own, several concurrently.
"""

from __future__ import annotations

import argparse
import math
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import engines, record

#: Kind and name: a provider under the policy, a backend of vLLM's, an attention of transformers'.
SIDES = (
    "sink:torch",
    "sink:auto",
    "sink:flash",
    "sink:triton",
    "sink:xformers",
    "stock:FLASH_ATTN",
    "stock:TRITON_ATTN",
    "stock:FLEX_ATTENTION",
    "transformers:sdpa",
    "transformers:eager",
)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="benchmarks.providers",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", required=True, help="a model folder or name")
    parser.add_argument("--text", required=True, type=Path, help="any UTF-8 text")
    parser.add_argument("--tokens", type=int, default=8192, help="score the first N tokens")
    parser.add_argument("--sink-tokens", type=int, default=4)
    parser.add_argument("--window-tokens", type=int, default=509)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--chunk", type=int, default=1024, help="tokens of a prefill chunk")
    parser.add_argument("--kv-gib", type=float, default=2, help="size of the KV pool")
    parser.add_argument("--sides", default=",".join(SIDES), help="comma-separated")
    parser.add_argument("--jobs", type=int, default=1, help="concurrent sides")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--json", required=True, type=Path, help="where the result goes")
    args = parser.parse_args()
    args.sides = args.sides.split(",")
    for side in args.sides:
        if side.partition(":")[0] not in ("sink", "stock", "transformers"):
            parser.error(f"--sides: {side} is not allowed; allowed: {', '.join(SIDES)}")
    for flag in ("tokens", "jobs", "chunk"):
        if getattr(args, flag) < 1:
            parser.error(f"--{flag}: {getattr(args, flag)} is not allowed; allowed: at least 1")
    return args


def score_vllm(args: argparse.Namespace, kind: str, name: str) -> list[float]:
    """Log-probability of each token but the first, by vLLM with or without the policy."""
    from benchmarks.quality import score

    stock = kind == "stock"
    kv_policy = {
        "name": "sink",
        "sink_tokens": args.sink_tokens,
        "window_tokens": args.window_tokens,
        "sink_attention": name,
    }
    more = {"attention_backend": name} if stock else {}
    llm = engines.start(
        args.model,
        None if stock else kv_policy,
        args.tokens + 1,
        dtype=args.dtype,
        chunk=args.chunk,
        kv_gib=args.kv_gib,
        **more,
    )
    return score(llm, engines.read_tokens(llm.get_tokenizer(), args.text, args.tokens))


def score_transformers(args: argparse.Namespace, name: str) -> list[float]:
    """The same with transformers, chunk by chunk over its own cache: full attention."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = AutoModelForCausalLM.from_pretrained(
        args.model, dtype=getattr(torch, args.dtype), attn_implementation=name
    ).to(device)
    tokens = engines.read_tokens(AutoTokenizer.from_pretrained(args.model), args.text, args.tokens)
    ids = torch.tensor([tokens], device=device)
    told: list[float] = []
    cache = None
    with torch.inference_mode():
        for begin in range(0, args.tokens, args.chunk):
            out = model(ids[:, begin : begin + args.chunk], past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            after = ids[0, begin + 1 : begin + args.chunk + 1]
            logprobs = out.logits[0, : len(after)].float().log_softmax(-1)
            told += logprobs.gather(1, after[:, None])[:, 0].tolist()
    return told


def one(args: argparse.Namespace) -> None:
    """The work of one process."""
    kind, _, name = args.one.partition(":")
    told = (
        score_transformers(args, name) if kind == "transformers" else score_vllm(args, kind, name)
    )
    np.save(args.json, np.asarray(told))


def all_sides(args: argparse.Namespace, folder: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """Log-probabilities by side, float64 [tokens - 1]; and why some sides have none."""
    from tqdm import tqdm

    waiting, running = list(args.sides), dict[str, subprocess.Popen[bytes]]()
    told, failed = dict[str, Any](), dict[str, str]()
    with tqdm(total=len(waiting), unit="side", desc="scoring") as bar:
        while waiting or running:
            while waiting and len(running) < args.jobs:
                side = waiting.pop(0)
                base = folder / side.replace(":", "-")
                argv = list(sys.argv[1:])
                argv += ["--one", side, "--json", f"{base}.npy"]
                with base.with_suffix(".log").open("w") as log:
                    running[side] = subprocess.Popen(
                        [sys.executable, "-m", "benchmarks.providers", *argv],
                        stdout=log,
                        stderr=subprocess.STDOUT,
                    )
            time.sleep(0.2)
            for side, process in list(running.items()):
                if process.poll() is None:
                    continue
                del running[side]
                bar.update()
                base = folder / side.replace(":", "-")
                if process.returncode == 0:
                    told[side] = np.load(f"{base}.npy")
                else:
                    lines = base.with_suffix(".log").read_text().strip().splitlines()
                    failed[side] = lines[-1] if lines else f"status {process.returncode}"
                    tqdm.write(f"{side}: {failed[side]}")
    return told, failed


def apart(a: Any, b: Any) -> dict[str, float]:
    """The difference of two rows of log-probabilities."""
    difference = np.abs(a - b)
    perplexity = [math.exp(-x.mean()) for x in (a, b)]
    return {
        "largest": float(difference.max()),
        "p99": float(np.percentile(difference, 99)),
        "mean": float(difference.mean()),
        "perplexity_ratio": perplexity[0] / perplexity[1],
    }


def compare(told: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Providers against ``torch``, full attention against vLLM's FlashAttention."""
    pairs = {}
    for side in told:
        other = "sink:torch" if side.startswith("sink:") else "stock:FLASH_ATTN"
        if side != other and other in told:
            pairs[f"{side} / {other}"] = apart(told[side], told[other])
    return pairs


def draw(pairs: dict[str, dict[str, float]], dtype: str, path: Path) -> None:
    """The largest, 99th percentile and mean difference of each pair."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(9, 0.6 * len(pairs) + 1.6))
    names = list(pairs)[::-1]
    for key, marker in (("mean", "o"), ("p99", "s"), ("largest", "D")):
        axes.plot([pairs[n][key] for n in names], range(len(names)), marker, label=key)
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.set(xscale="log", xlabel=f"difference of log-probabilities, {dtype} (nats)")
    axes.grid(axis="x", alpha=0.3)
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def main() -> None:
    args = parse_args()
    if args.one:
        one(args)
        return
    args.json.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="providers-") as folder:
        told, failed = all_sides(args, Path(folder))
    pairs = compare(told)
    result = {
        "benchmark": "providers",
        "model": Path(args.model).name,
        "text": args.text.name,
        "tokens": args.tokens,
        "sink_tokens": args.sink_tokens,
        "window_tokens": args.window_tokens,
        "dtype": args.dtype,
        "chunk": args.chunk,
        "seed": engines.SEED,
        "perplexity": {side: math.exp(-row.mean()) for side, row in told.items()},
        "failed": failed,
        "pairs": pairs,
    }
    record.write(args.json, result)
    if pairs:
        draw(pairs, args.dtype, args.json.with_suffix(".png"))
    for name, pair in pairs.items():
        print(
            f"{name}: largest {pair['largest']:.4f}, 99 % {pair['p99']:.4f}, mean "
            f"{pair['mean']:.5f}, perplexity {pair['perplexity_ratio']:.5f}"
        )


if __name__ == "__main__":
    main()
