"""Sliding window with recomputation, the paper's yardstick, at sampled positions (Figure 3).

    python -m benchmarks.paper.recompute --model DIR --text FILE --tokens 81920 \\
        --cache-tokens 513 --json out.json

For each token it predicts, this policy recomputes the whole cache from its last tokens, as a
prompt of stock vLLM: no position exceeds the cache's size, and every token costs a whole prefill.
So it is measured at ``--samples`` positions, the same as ``benchmarks.quality`` reports singly,
and compared with the perplexity there.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path
from typing import Any

from benchmarks import engines, record

#: Sampled positions of a point of the curve.
PER_POINT = 16


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="benchmarks.paper.recompute",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", required=True, help="a model folder or name")
    parser.add_argument("--text", required=True, type=Path, help="any UTF-8 text")
    parser.add_argument("--tokens", type=int, default=24_576, help="of the first N tokens")
    parser.add_argument("--cache-tokens", type=int, default=513, help="S + W of the policy")
    parser.add_argument("--samples", type=int, default=320, help="positions")
    parser.add_argument("--every", type=int, default=1, help="only each N-th of the positions")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--chunk", type=int, default=2048, help="tokens of a step")
    parser.add_argument("--json", required=True, type=Path, help="where the result goes")
    args = parser.parse_args()
    for flag, least in (
        ("tokens", 2),
        ("cache_tokens", 1),
        ("samples", 1),
        ("every", 1),
        ("chunk", 1),
    ):
        if getattr(args, flag) < least:
            name = flag.replace("_", "-")
            parser.error(f"--{name}: {getattr(args, flag)} is not allowed; allowed: from {least}")
    return args


def score(llm: Any, tokens: list[int], positions: list[int], cache: int) -> list[float]:
    """Log-probability of the token at each position, given the ``cache`` tokens before it."""
    from vllm import SamplingParams

    prompts = [{"prompt_token_ids": tokens[max(0, i - cache) : i]} for i in positions]
    params = [
        SamplingParams(
            max_tokens=1, temperature=0.0, logprob_token_ids=[tokens[i]], detokenize=False
        )
        for i in positions
    ]
    outputs = llm.generate(prompts, params, use_tqdm=True)
    return [
        output.outputs[0].logprobs[0][tokens[i]].logprob
        for i, output in zip(positions, outputs, strict=True)
    ]


def points(samples: list[list[float]], width: int = PER_POINT) -> list[dict[str, float]]:
    """Perplexity over each run of ``width`` samples, with the standard error of its logarithm."""
    found = []
    for a in range(0, len(samples) - len(samples) % width or len(samples), width):
        part = samples[a : a + width]
        nll = [-logprob for _, logprob in part]
        mean = math.fsum(nll) / len(nll)
        variance = math.fsum((x - mean) ** 2 for x in nll) / max(1, len(nll) - 1)
        found.append(
            {
                "from": part[0][0],
                "to": part[-1][0],
                "nll": mean,
                "nll_error": math.sqrt(variance / len(nll)),
                "perplexity": math.exp(mean),
            }
        )
    return found


def main() -> None:
    args = parse_args()
    llm = engines.start(
        args.model,
        None,
        args.cache_tokens + 1,
        dtype=args.dtype,
        chunk=args.chunk,
        streams=max(1, args.chunk // args.cache_tokens + 1),
    )
    tokens = engines.read_tokens(llm.get_tokenizer(), args.text, args.tokens)
    positions = engines.spread(args.tokens, args.samples, 1)[:: args.every]
    begin = time.perf_counter()
    told = score(llm, tokens, positions, args.cache_tokens)
    seconds = time.perf_counter() - begin
    samples = [[i, logprob] for i, logprob in zip(positions, told, strict=True)]
    result = {
        "benchmark": "recompute",
        "model": Path(args.model).name,
        "text": args.text.name,
        "policy": "recompute",
        "cache_tokens": args.cache_tokens,
        "native_context": engines.native_context(args.model),
        "dtype": args.dtype,
        "seed": engines.SEED,
        "tokens": args.tokens,
        "perplexity": math.exp(-math.fsum(told) / len(told)),
        "seconds": seconds,
        "seconds_per_token": seconds / len(told),
        "curve": points(samples),
        "samples": samples,
    }
    record.write(args.json, result)
    print(
        f"perplexity {result['perplexity']:.3f} at {len(told)} positions of {args.tokens:,}, "
        f"{result['seconds_per_token']:.2f} s for each -> {args.json}"
    )


if __name__ == "__main__":
    main()
