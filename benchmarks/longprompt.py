"""A prompt that is far longer than a segment, over HTTP: is it taken at a flat rate?

    python -m benchmarks.longprompt --model DIR --prompt-tokens 1000000 --sink-tokens 4 \\
        --window-tokens 509 --segment-tokens 4096 --json out.json

The prompt is sent as token ids to ``vllm serve``, whose ``max_model_len`` is the segment. How far
it has got is read from ``/metrics`` while it is computed (``vllm_sink_tokens_evicted``: vLLM's own
counter of prompt tokens moves when a prompt is done). The rate is told by the clock, and by the
engine's CPU time, which a busy machine does not disturb. A request of the same shape with a prompt
of ``--warm-up`` tokens goes first.
"""

from __future__ import annotations

import argparse
import json
import statistics
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import record
from benchmarks.probes import cpu_seconds, metric
from benchmarks.served import Served, serve

EVICTED = "vllm_sink_tokens_evicted_total"


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="benchmarks.longprompt",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", required=True, help="a model folder or name")
    parser.add_argument("--prompt-tokens", type=int, default=1_000_000)
    parser.add_argument("--warm-up", type=int, default=20_000, help="tokens of a prompt before")
    parser.add_argument("--output-tokens", type=int, default=50)
    parser.add_argument("--vocabulary", type=int, default=256, help="token ids to draw from")
    parser.add_argument("--sink-tokens", type=int, default=4)
    parser.add_argument("--window-tokens", type=int, default=509)
    parser.add_argument("--segment-tokens", type=int, default=4096)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--sample-every", type=float, default=0.5, help="seconds")
    parser.add_argument(
        "--serve-args",
        default="--enforce-eager",
        help="more flags of vllm serve: --serve-args='...'",
    )
    parser.add_argument("--json", required=True, type=Path, help="where the result goes")
    args = parser.parse_args()
    least = 20 * args.window_tokens
    if args.prompt_tokens < least:
        parser.error(f"--prompt-tokens: {args.prompt_tokens} is not allowed; allowed: {least} up")
    return args


class Prompt:
    """One long prompt, and how far it has got.

    Attributes:
        samples: (seconds, tokens taken, CPU seconds of the engine), from sending it to its answer.
        sent: seconds that the client needed to write it as JSON.
        arrived: seconds of each token of the answer.
    """

    def __init__(self, served: Served, tokens: list[int], args: argparse.Namespace) -> None:
        self.served, self.tokens, self.args = served, tokens, args
        self.samples: list[tuple[float, int, float]] = []
        self.arrived: list[float] = []
        self.usage: dict[str, Any] = {}
        self.error: Exception | None = None

    def _ask(self) -> None:
        body = {
            "model": "model",
            "prompt": self.tokens,
            "max_tokens": self.args.output_tokens,
            "ignore_eos": True,
            "temperature": 0,
            "stream_options": {"include_usage": True},
        }
        try:
            for event in self.served.stream("/v1/completions", body):
                if event["choices"]:
                    self.arrived.append(time.perf_counter() - self.begin)
                self.usage = event.get("usage") or self.usage
        except Exception as error:
            self.error = error

    def _engine_seconds(self) -> float:
        return sum(s for name, s in cpu_seconds(self.served).items() if name != "API server")

    def __call__(self) -> None:
        from tqdm import tqdm

        front = cpu_seconds(self.served)["API server"]
        kept = self.args.sink_tokens + self.args.window_tokens
        before = metric(self.served, EVICTED)
        self.begin = time.perf_counter()
        client = threading.Thread(target=self._ask)
        client.start()
        taken = 0
        with tqdm(total=len(self.tokens), unit="tok", desc="prompt") as bar:
            while client.is_alive() and not self.arrived:
                evicted = int(metric(self.served, EVICTED) - before)
                if evicted and evicted + kept > taken:
                    taken = evicted + kept
                    now = time.perf_counter() - self.begin
                    self.samples.append((now, taken, self._engine_seconds()))
                    bar.update(taken - bar.n)
                time.sleep(self.args.sample_every)
        client.join()
        self.front_seconds = cpu_seconds(self.served)["API server"] - front
        if self.error is not None:
            raise self.error


def tenths(samples: list[tuple[float, int, float]], total: int, column: int) -> list[float]:
    """Seconds for a thousand tokens in each tenth of the prompt; ``column`` 0: clock, 2: CPU."""
    taken = [s[1] for s in samples]
    marks = np.interp(
        np.linspace(taken[0], min(total, taken[-1]), 11), taken, [s[column] for s in samples]
    )
    each = (taken[-1] - taken[0]) / 10_000
    return [float(seconds) / each for seconds in np.diff(marks)]


def summarise(prompt: Prompt, json_seconds: float, memory: list[dict[str, int]]) -> dict[str, Any]:
    args = prompt.args
    clock, cpu = (tenths(prompt.samples, args.prompt_tokens, column) for column in (0, 2))
    return {
        "benchmark": "longprompt",
        "model": Path(args.model).name,
        "dtype": args.dtype,
        "prompt_tokens": args.prompt_tokens,
        "sink_tokens": args.sink_tokens,
        "window_tokens": args.window_tokens,
        "segment_tokens": args.segment_tokens,
        "usage": prompt.usage,
        "rollovers": prompt.served.rollovers(),
        "json_megabytes": len(json.dumps(prompt.tokens)) / 1e6,
        "client_json_seconds": json_seconds,
        "first_progress_seconds": prompt.samples[0][0],
        "front_end_cpu_seconds": prompt.front_seconds,
        "first_token_seconds": prompt.arrived[0],
        "tokens_per_second": args.prompt_tokens / prompt.arrived[0],
        "seconds_per_thousand_tokens": clock,
        "cpu_seconds_per_thousand_tokens": cpu,
        "last_over_first_tenth": clock[-1] / clock[0],
        "last_over_first_tenth_cpu": cpu[-1] / cpu[0],
        "ms_per_output_token": 1000
        * statistics.median(np.diff(prompt.arrived) if len(prompt.arrived) > 1 else [0.0]),
        "memory_before_and_after": {
            name: [m.get(name) for m in memory] for name in memory[-1] if name in memory[0]
        },
        "samples": prompt.samples,
    }


def draw(result: dict[str, Any], path: Path) -> None:
    """Cost of a thousand tokens by tenth, by the clock and in CPU time."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (progress, cost) = pyplot.subplots(1, 2, figsize=(11, 4))
    progress.plot([s[0] for s in result["samples"]], [s[1] for s in result["samples"]])
    progress.set(xlabel="seconds", ylabel="tokens of the prompt taken", ylim=(0, None))
    for key, label in (
        ("seconds_per_thousand_tokens", "on the clock"),
        ("cpu_seconds_per_thousand_tokens", "CPU time of the engine"),
    ):
        cost.plot(range(1, 11), result[key], marker="o", label=label)
    cost.set(xlabel="tenth of the prompt", ylabel="seconds per 1,000 tokens", ylim=(0, None))
    cost.legend()
    figure.suptitle(
        f"A prompt of {result['prompt_tokens']:,} tokens in segments of {result['segment_tokens']}:"
        f" last tenth over first {result['last_over_first_tenth']:.3f}"
        f" (CPU {result['last_over_first_tenth_cpu']:.3f})"
    )
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def main() -> None:
    args = parse_args()
    flags = (
        f"--kv-policy sink --sink-tokens {args.sink_tokens} --window-tokens {args.window_tokens} "
        f"--segment-tokens {args.segment_tokens} --served-model-name model --dtype {args.dtype} "
        f"{args.serve_args}"
    )
    numbers = np.random.default_rng(0).integers(
        10, args.vocabulary, args.warm_up + args.prompt_tokens
    )
    tokens = numbers.tolist()
    begin = time.perf_counter()
    json.dumps(tokens)
    json_seconds = time.perf_counter() - begin
    with serve(args.model, args.json.with_suffix(".log"), flags.split()) as served:
        Prompt(served, tokens[: args.warm_up], args)()
        memory = [served.memory()]
        prompt = Prompt(served, tokens[args.warm_up :], args)
        prompt()
        memory.append(served.memory())
        result = summarise(prompt, json_seconds, memory)
    record.write(args.json, result)
    draw(result, args.json.with_suffix(".png"))
    print(
        f"{args.prompt_tokens:,} tokens in {result['first_token_seconds']:.1f} s, the first "
        f"progress after {result['first_progress_seconds']:.1f} s; last tenth over first: "
        f"{result['last_over_first_tenth']:.3f} by the clock, "
        f"{result['last_over_first_tenth_cpu']:.3f} in CPU time -> {args.json}"
    )


if __name__ == "__main__":
    main()
