"""A prompt far longer than a segment, over HTTP: is it prefilled at a constant rate?

    python -m benchmarks.longprompt --model DIR --prompt-tokens 1000000 --sink-tokens 4 \\
        --window-tokens 509 --segment-tokens 4096 --json out.json

The prompt is sent as token ids to ``vllm serve``, whose ``max_model_len`` is the segment. Its
progress is read from ``/metrics`` (``vllm_sink_tokens_evicted``: vLLM's own counter of prompt
tokens changes only when a prompt is done). The rate is measured by the clock and by the engine's
CPU time, for each tenth as a whole and as the lower quartile of its pieces, a hundredth of the
prompt each, which other work on the machine disturbs least. A request of the same shape with a
prompt of ``--warm-up`` tokens goes first, then ``--rounds`` different prompts.
"""

from __future__ import annotations

import argparse
import json
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import record
from benchmarks.served import Served, add_arguments, flags, serve, settings

EVICTED = "vllm_sink_tokens_evicted_total"


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="benchmarks.longprompt",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_arguments(parser, segment_tokens=4096)
    parser.add_argument("--prompt-tokens", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=1, help="prompts, one after the other")
    parser.add_argument("--warm-up", type=int, default=20_000, help="tokens of a prompt before")
    parser.add_argument("--output-tokens", type=int, default=50)
    parser.add_argument("--vocabulary", type=int, default=256, help="token ids to draw from")
    parser.add_argument("--sample-every", type=float, default=0.5, help="seconds")
    args = parser.parse_args()
    least = 20 * args.window_tokens
    if args.prompt_tokens < least:
        parser.error(f"--prompt-tokens: {args.prompt_tokens} is not allowed; allowed: {least} up")
    return args


class Prompt:
    """One long prompt and its progress.

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
        return sum(s for name, s in self.served.cpu_seconds().items() if name != "API server")

    def __call__(self) -> None:
        from tqdm import tqdm

        front = self.served.cpu_seconds()["API server"]
        kept = self.args.sink_tokens + self.args.window_tokens
        before = self.served.metric(EVICTED)
        self.begin = time.perf_counter()
        client = threading.Thread(target=self._ask)
        client.start()
        taken = 0
        with tqdm(total=len(self.tokens), unit="tok", desc="prompt") as bar:
            while client.is_alive() and not self.arrived:
                evicted = int(self.served.metric(EVICTED) - before)
                if evicted and evicted + kept > taken:
                    taken = evicted + kept
                    now = time.perf_counter() - self.begin
                    self.samples.append((now, taken, self._engine_seconds()))
                    bar.update(taken - bar.n)
                time.sleep(self.args.sample_every)
        client.join()
        self.front_seconds = self.served.cpu_seconds()["API server"] - front
        if self.error is not None:
            raise self.error


def pieces(prompts: list[Prompt], column: int) -> np.ndarray:
    """Seconds for a thousand tokens, [10 tenths, pieces]; ``column`` 0: clock, 2: CPU."""
    found = []
    for prompt in prompts:
        taken = [s[1] for s in prompt.samples]
        first, last = taken[0], min(len(prompt.tokens), taken[-1])
        marks = np.linspace(first, last, 101)
        at = np.interp(marks, taken, [s[column] for s in prompt.samples])
        found.append(np.diff(at).reshape(10, 10) * 100_000 / (last - first))
    return np.concatenate(found, axis=1)


def rate(prompts: list[Prompt], column: int) -> dict[str, Any]:
    """Cost of a thousand tokens by tenth, and the ratio of the last to the first."""
    each = pieces(prompts, column)
    mean, quiet = each.mean(1), np.percentile(each, 25, axis=1)
    return {
        "seconds_per_thousand_tokens": mean.tolist(),
        "lower_quartile": quiet.tolist(),
        "last_over_first_tenth": mean[-1] / mean[0],
        "last_over_first_tenth_lower_quartile": quiet[-1] / quiet[0],
    }


def summarise(
    prompts: list[Prompt], json_seconds: float, memory: list[dict[str, int]]
) -> dict[str, Any]:
    args = prompts[0].args
    return {
        "benchmark": "longprompt",
        **settings(args),
        "prompt_tokens": args.prompt_tokens,
        "rollovers": prompts[0].served.rollovers(),
        "json_megabytes": len(json.dumps(prompts[0].tokens)) / 1e6,
        "client_json_seconds": json_seconds,
        "clock": rate(prompts, 0),
        "cpu": rate(prompts, 2),
        "rounds": [
            {
                "usage": prompt.usage,
                "first_progress_seconds": prompt.samples[0][0],
                "front_end_cpu_seconds": prompt.front_seconds,
                "first_token_seconds": prompt.arrived[0],
                "tokens_per_second": args.prompt_tokens / prompt.arrived[0],
                "ms_per_output_token": 1000
                * (prompt.arrived[-1] - prompt.arrived[0])
                / max(1, args.output_tokens - 1),
                "samples": prompt.samples,
            }
            for prompt in prompts
        ],
        "memory_before_and_after": {
            name: [m.get(name) for m in memory] for name in memory[-1] if name in memory[0]
        },
    }


def draw(result: dict[str, Any], path: Path) -> None:
    """Progress of each prompt, and the cost of a thousand tokens by tenth."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (progress, cost) = pyplot.subplots(1, 2, figsize=(11, 4))
    for one in result["rounds"]:
        progress.plot([s[0] for s in one["samples"]], [s[1] for s in one["samples"]])
    progress.set(xlabel="seconds", ylabel="tokens of the prompt taken", ylim=(0, None))
    for key, label in (("clock", "on the clock"), ("cpu", "CPU time of the engine")):
        rates = result[key]
        (line,) = cost.plot(
            range(1, 11), rates["lower_quartile"], marker="o", label=f"{label}, lower quartile"
        )
        mean = rates["seconds_per_thousand_tokens"]
        cost.plot(range(1, 11), mean, ":", color=line.get_color(), label=f"{label}, mean")
    cost.set(xlabel="tenth of the prompt", ylabel="seconds per 1,000 tokens", ylim=(0, None))
    cost.legend(fontsize=7)
    figure.suptitle(
        f"Prompts of {result['prompt_tokens']:,} tokens in segments of {result['segment_tokens']}"
    )
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def main() -> None:
    args = parse_args()
    draw_tokens = np.random.default_rng(0)

    def tokens(count: int) -> list[int]:
        return list(draw_tokens.integers(10, args.vocabulary, count).tolist())

    with serve(args.model, args.json.with_suffix(".log"), flags(args)) as served:
        Prompt(served, tokens(args.warm_up), args)()
        memory, prompts = [served.memory()], []
        for _ in range(args.rounds):
            prompts.append(Prompt(served, tokens(args.prompt_tokens), args))
            prompts[-1]()
        memory.append(served.memory())
        begin = time.perf_counter()
        json.dumps(prompts[0].tokens)
        result = summarise(prompts, time.perf_counter() - begin, memory)
    record.write(args.json, result)
    draw(result, args.json.with_suffix(".png"))
    for one in result["rounds"]:
        print(
            f"{args.prompt_tokens:,} tokens in {one['first_token_seconds']:.1f} s, the first "
            f"progress after {one['first_progress_seconds']:.1f} s"
        )
    for key, label in (("clock", "by the clock"), ("cpu", "in CPU time")):
        mean, quiet = (
            result[key][f"last_over_first_tenth{part}"] for part in ("", "_lower_quartile")
        )
        print(f"last tenth over first {label}: {mean:.3f}, by lower quartiles {quiet:.3f}")


if __name__ == "__main__":
    main()
