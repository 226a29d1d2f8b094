"""Perplexity by position, teacher-forced through the served engine's own prefill.

    python -m benchmarks.quality --model DIR --text FILE --tokens 24576 --policy sink \\
        --sink-tokens 4 --window-tokens 509 --dtype float32 --json out.json

One request holds the whole text; vLLM prefills it in chunks and returns the log-probability of each
token (``prompt_logprobs``), so a server's own computation is scored. A picture of the curve is
written beside the JSON. ``--policy full`` is vLLM unchanged, its rotary table extended to the text.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path
from typing import Any

from benchmarks import engines, record


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="benchmarks.quality",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", required=True, help="a model folder or name")
    parser.add_argument("--text", required=True, type=Path, help="any UTF-8 text")
    parser.add_argument("--tokens", type=int, default=24_576, help="score the first N tokens")
    parser.add_argument(
        "--repeat", action="store_true", help="repeat a text that is shorter than that"
    )
    parser.add_argument("--policy", choices=("sink", "window", "full"), default="sink")
    parser.add_argument("--sink-tokens", type=int)
    parser.add_argument("--window-tokens", type=int)
    parser.add_argument("--sink-attention", help="the attention provider; default: auto")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--chunk", type=int, default=1024, help="tokens of a prefill chunk")
    parser.add_argument("--kv-gib", type=float, help="size of the KV pool; default: vLLM's")
    parser.add_argument(
        "--newlines", type=int, default=0, help="put newlines in place of the first N tokens"
    )
    parser.add_argument(
        "--true-positions",
        action="store_true",
        help="an experiment: sinks where they truly are, against the paper's section 3.2",
    )
    parser.add_argument(
        "--samples", type=int, default=320, help="report this many tokens singly, evenly spread"
    )
    parser.add_argument("--bin", type=int, default=512, help="tokens of a point of the curve")
    parser.add_argument("--json", required=True, type=Path, help="where the result goes")
    args = parser.parse_args()
    if args.tokens < 2:
        parser.error(f"--tokens: {args.tokens} is not allowed; allowed: at least 2")
    if args.kv_gib is not None and args.kv_gib <= 0:
        parser.error(f"--kv-gib: {args.kv_gib} is not allowed; allowed: more than 0")
    if not 0 <= args.newlines < args.tokens:
        parser.error(f"--newlines: {args.newlines} is not allowed; allowed: 0 to {args.tokens - 1}")
    if args.true_positions and args.policy == "full":
        parser.error("--true-positions: not allowed with --policy full, which has no other")
    if args.samples < 0:
        parser.error(f"--samples: {args.samples} is not allowed; allowed: at least 0")
    if args.bin < 1:
        parser.error(f"--bin: {args.bin} is not allowed; allowed: at least 1")
    return args


def engine(args: argparse.Namespace, length: int) -> Any:
    """The engine under the policy, with room for ``length`` tokens of bookkeeping."""
    kv_policy = {
        "name": args.policy,
        "sink_tokens": args.sink_tokens,
        "window_tokens": args.window_tokens,
        "sink_attention": getattr(args, "sink_attention", None),
        "true_positions": getattr(args, "true_positions", None) or None,
    }
    return engines.start(
        args.model,
        kv_policy,
        length,
        dtype=args.dtype,
        chunk=args.chunk,
        kv_gib=getattr(args, "kv_gib", None),
    )


def score(llm: Any, tokens: list[int], name: str = "scoring") -> list[float]:
    """Log-probability of each token but the first; ``name`` is the progress bar's."""
    from tqdm import tqdm
    from vllm import SamplingParams

    core = llm.llm_engine
    params = SamplingParams(
        max_tokens=1, temperature=0.0, prompt_logprobs=0, flat_logprobs=True, detokenize=False
    )
    core.add_request("text", {"prompt_token_ids": tokens}, params)
    outputs: list[Any] = []
    with tqdm(total=len(tokens), unit="tok", desc=name) as bar:
        while core.has_unfinished_requests():
            outputs += core.step()
            running = core.engine_core.engine_core.scheduler.running
            bar.update((running[0].num_computed_tokens if running else len(tokens)) - bar.n)
    logprobs = outputs[-1].prompt_logprobs
    return [logprobs[i][tokens[i]].logprob for i in range(1, len(tokens))]


def curve(logprobs: list[float], width: int) -> list[dict[str, float]]:
    """Perplexity over each run of ``width`` positions; ``from`` is the first predicted index."""
    points = []
    for a in range(0, len(logprobs), width):
        part = logprobs[a : a + width]
        nll = -math.fsum(part) / len(part)
        points.append({"from": a + 1, "to": a + len(part), "nll": nll, "perplexity": math.exp(nll)})
    return points


def newline(tokenizer: Any) -> list[int]:
    """The one token that a line ends with.

    Raises:
        SystemExit: this tokenizer has none.
    """
    ids: list[int] = tokenizer.encode("\n", add_special_tokens=False)
    if len(ids) != 1:
        raise SystemExit(f"--newlines: not allowed: a newline is {len(ids)} tokens of this model")
    return ids


def draw(result: dict[str, Any], path: Path) -> None:
    """Perplexity by position, with the model's context marked."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    points = result["curve"]
    figure, axes = pyplot.subplots(figsize=(8, 4.5))
    axes.plot([p["to"] for p in points], [p["perplexity"] for p in points], linewidth=1.2)
    axes.set_yscale("log")
    if result["native_context"] < result["tokens"]:
        axes.axvline(result["native_context"], color="grey", linestyle="--", linewidth=1)
        axes.text(result["native_context"], axes.get_ylim()[1], " native context", va="top")
    axes.set_xlabel("position in the stream (tokens)")
    axes.set_ylabel(f"perplexity over {result['bin']} tokens")
    axes.set_title(
        f"{result['policy']}: S {result['sink_tokens']}, W {result['window_tokens']}, "
        f"{result['dtype']}: {result['perplexity']:.2f} over {result['tokens']:,} tokens"
    )
    figure.tight_layout()
    figure.savefig(path, dpi=130)


def main() -> None:
    args = parse_args()
    llm = engine(args, args.tokens + 1)
    tokenizer = llm.get_tokenizer()
    tokens = engines.read_tokens(tokenizer, args.text, args.tokens, args.repeat)
    if args.newlines:
        tokens[: args.newlines] = newline(tokenizer) * args.newlines
    begin = time.perf_counter()
    logprobs = score(llm, tokens)
    seconds = time.perf_counter() - begin
    config = llm.llm_engine.vllm_config
    policy = config.additional_config.get("kv_policy", {})
    nll = -math.fsum(logprobs)
    last = logprobs[-min(8192, len(logprobs)) :]
    result = {
        "benchmark": "quality",
        "model": Path(args.model).name,
        "text": args.text.name,
        "policy": args.policy,
        "sink_tokens": policy.get("sink_tokens", 0),
        "window_tokens": policy.get("window_tokens"),
        "true_positions": policy.get("true_positions", False),
        "newlines": args.newlines,
        "repeat": args.repeat,
        "native_context": policy.get("native_context") or engines.native_context(args.model),
        "provider": policy.get("provider"),
        "dtype": args.dtype,
        "chunk": args.chunk,
        "seed": engines.SEED,
        "tokens": len(tokens),
        "nll_sum": nll,
        "perplexity": math.exp(nll / len(logprobs)),
        "perplexity_last_8192": math.exp(-math.fsum(last) / len(last)),
        "seconds": seconds,
        "bin": args.bin,
        "curve": curve(logprobs, args.bin),
        "samples": [[i, logprobs[i - 1]] for i in engines.spread(len(tokens), args.samples, 1)],
    }
    record.write(args.json, result)
    draw(result, args.json.with_suffix(".png"))
    print(
        f"perplexity {result['perplexity']:.3f} over {len(tokens):,} tokens "
        f"({result['perplexity_last_8192']:.3f} over the last {len(last):,}), "
        f"{len(tokens) / seconds:.0f} tokens/s -> {args.json}"
    )


if __name__ == "__main__":
    main()
