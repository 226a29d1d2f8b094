"""vLLM end to end: the policy beside stock vLLM, two engines in one process that take turns.

    python -m benchmarks.serving --experiment tpot --shape llama-3-8b --batch 1,32 --json out.json

``tpot``: time per output token, against stock vLLM with an equal sliding window, by batch size.
``ttft``: time to the first token of a long prompt, against the same.
``full``: time per output token against stock full attention at a true context, and how many streams
of that length fit into a given KV memory.
``flat``: the policy alone, far into a stream against near its start.

Engines are stepped by hand, in rounds that alternate between the two sides; the GPU is idle at the
start of each. Weights are dummies, prompts are random and nothing is detokenized. A picture is
written beside the JSON.
"""

from __future__ import annotations

import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import record
from benchmarks.serving_arguments import PAST_WINDOW, budget, parse_args
from benchmarks.serving_bench import Bench
from benchmarks.serving_engine import LEAD
from benchmarks.serving_report import draw, show
from benchmarks.serving_sizes import GIB

#: What the other side is called, by experiment.
OTHER = {"tpot": "stock sliding window", "ttft": "stock sliding window", "full": "stock full"}


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
        # The stream ends at its context, so that the last round does not pass it.
        most = budget(args, len(batches), batches[-1], context)
        bench.by_batch(batches, context - most, most, f"context {context:,}, ")
    return {"streams": streams}


def flat(bench: Bench) -> dict[str, Any]:
    """One engine. Before each round its stream is sent again, all but its last tokens cached."""
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


def main() -> None:
    args = parse_args(__doc__)
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
