"""Is index 1,000,000 as good as index 0? Perplexity of one text at both, on a real model.

    python -m benchmarks.purity --model DIR --text FILE --dtype bfloat16 --json out.json

Two streams end in the same text; one reads ``--far`` other tokens between the sinks and the text.
After (layers + 1) windows of the text, all that a token can reach comes from the sinks and from
the text itself, directly or through other tokens: the same window state at another index. The rest
is scored, and would agree exactly if rounding did not depend on the index.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

from benchmarks import quality, record


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="benchmarks.purity",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", required=True)
    parser.add_argument("--text", required=True, type=Path, help="repeated to fill the distance")
    parser.add_argument("--far", type=int, default=1_000_000, help="tokens in between")
    parser.add_argument("--score", type=int, default=4096, help="tokens that are scored")
    parser.add_argument("--sink-tokens", type=int, default=4)
    parser.add_argument("--window-tokens", type=int, default=252)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--chunk", type=int, default=4096)
    parser.add_argument("--json", required=True, type=Path)
    args = parser.parse_args()
    args.policy = "sink"
    return args


def nll(llm: Any, stream: list[int], count: int) -> float:
    """Mean negative log-likelihood of the last ``count`` tokens."""
    return -math.fsum(quality.score(llm, stream)[-count:]) / count


def main() -> None:
    args = parse_args()
    llm = quality.engine(args, args.far + 65_536)
    layers = llm.llm_engine.vllm_config.model_config.hf_text_config.num_hidden_layers
    settle = (layers + 1) * args.window_tokens
    book = llm.get_tokenizer().encode(args.text.read_text(encoding="utf-8"))
    need = args.sink_tokens + settle + args.score
    if len(book) < 2 * need:
        raise SystemExit(f"--text: {args.text} has {len(book)} tokens; allowed: {2 * need} or more")
    sinks, text, rest = book[: args.sink_tokens], book[args.sink_tokens : need], book[need:]
    filler = (rest * (args.far // len(rest) + 1))[: args.far]
    near = nll(llm, sinks + text, args.score)
    far = nll(llm, sinks + filler + text, args.score)
    result = {
        "benchmark": "purity",
        "model": Path(args.model).name,
        "dtype": args.dtype,
        "sink_tokens": args.sink_tokens,
        "window_tokens": args.window_tokens,
        "far": args.far,
        "scored": args.score,
        "perplexity_near": math.exp(near),
        "perplexity_far": math.exp(far),
        "relative_difference": abs(math.exp(far - near) - 1),
    }
    record.write(args.json, result)
    print(
        f"perplexity {result['perplexity_near']:.5f} at index 0, {result['perplexity_far']:.5f} at "
        f"{args.far:,}: {result['relative_difference']:.1e} apart -> {args.json}"
    )


if __name__ == "__main__":
    main()
