"""What a token costs a detokenizer, early and late in an answer: this project's and vLLM's.

    python -m benchmarks.detokenizer --model DIR --text FILE --json out.json

Answers of ordinary text, of U+FFFD and of skipped special tokens, by three tokenizers: the model's
own, which must be byte-level; the same with a decoder that does not say so, which takes the path of
SentencePiece; and ByT5's, which is pure Python. A detokenizer is advanced to each position; then
those of one kind of answer take turns, a few tokens each, so that a machine that slows down slows
all. Only ``decode_next`` is timed: the rest is vLLM's in both. vLLM's detokenizers that read all
tokens so far at each step are advanced to ``--vllm-limit`` at most.
"""

from __future__ import annotations

import argparse
import itertools
import os
import random
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from benchmarks import record

os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")

#: Between these two the cost of ours is compared.
EARLY, LATE = 2000, 50_000


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="benchmarks.detokenizer",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", required=True, help="a model folder or name, for its tokenizer")
    parser.add_argument("--text", required=True, type=Path, help="ordinary text, 250 kB or more")
    parser.add_argument("--at", type=int, nargs="+", default=[500, EARLY, 5000, LATE])
    parser.add_argument("--spell", type=int, default=20, help="tokens between two turns")
    parser.add_argument("--turns", type=int, default=100)
    parser.add_argument("--vllm-limit", type=int, default=5000, help="tokens")
    parser.add_argument("--json", required=True, type=Path)
    args = parser.parse_args()
    if not {EARLY, LATE} <= set(args.at):
        parser.error(f"--at: {args.at} is not allowed; allowed: with {EARLY} and {LATE}")
    return args


def tokenizers(model: str) -> dict[str, Any]:
    """By name, as vLLM holds them."""
    from tokenizers import decoders
    from transformers import AutoTokenizer, ByT5Tokenizer
    from vllm.tokenizers.hf import get_cached_tokenizer

    by_text = AutoTokenizer.from_pretrained(model)
    by_text._tokenizer.decoder = decoders.Sequence([by_text._tokenizer.decoder])
    return {
        "byte-level": get_cached_tokenizer(AutoTokenizer.from_pretrained(model)),
        "by text": get_cached_tokenizer(by_text),
        "slow": get_cached_tokenizer(ByT5Tokenizer()),
    }


def answers(tokenizer: Any, text: str) -> dict[str, list[int]]:
    """Tokens by kind of answer, to be repeated forever."""
    return {
        "ordinary text": tokenizer.encode(text, add_special_tokens=False),
        "U+FFFD": tokenizer.encode("\ufffd", add_special_tokens=False),
        "skipped special tokens": [tokenizer.eos_token_id],
    }


class Side:
    """One detokenizer at one position, and the seconds of its turns."""

    def __init__(self, who: str, at: int, detokenizer: Any, tokens: list[int]) -> None:
        self.who, self.at, self.detokenizer = who, at, detokenizer
        self.tokens: Iterator[int] = itertools.cycle(tokens)
        self.step(at)
        self.tokens = itertools.cycle(tokens)  # all sides decode the same text
        self.seconds: list[float] = []

    def step(self, count: int) -> None:
        step, kept = self.detokenizer.decode_next, self.detokenizer.token_ids
        for token in itertools.islice(self.tokens, count):
            kept.append(token)  # vLLM's slow one looks there for it
            step(token)

    def spell(self, count: int) -> None:
        self.step(count)  # other sides may have evicted the processor's caches
        begin = time.perf_counter()
        self.step(count)
        self.seconds.append((time.perf_counter() - begin) / count)

    def summary(self) -> dict[str, Any]:
        low, middle, high = (1e6 * np.percentile(self.seconds, [25, 50, 75])).tolist()
        return {
            "who": self.who,
            "at": self.at,
            "us_per_token": middle,
            "quartiles": [low, high],
        }


def measure(
    tokenizer: Any, kind: str, tokens: list[int], args: argparse.Namespace
) -> dict[str, Any]:
    """All sides of a kind of answer, in turns.

    Returns:
        late_over_early: cost of ours at ``LATE`` over that at ``EARLY``, of the same turn, the
        median; its quartiles; and the sides.
    """
    from vllm.sampling_params import SamplingParams
    from vllm.v1.engine.detokenizer import IncrementalDetokenizer

    from vllm_sink.vllm_fixes.detokenizer import choose_detokenizer

    theirs = IncrementalDetokenizer.__dict__["from_new_request"].__func__

    def ours(cls: Any, tokenizer: Any, request: Any) -> Any:
        return choose_detokenizer(partial(theirs, cls), cls, tokenizer, request)

    makers = {"vllm-sink": ours, "vLLM": theirs}
    prompt = tokenizer.encode("Once upon a time", add_special_tokens=False)
    sides = []
    for who, make in makers.items():
        for at in args.at:
            if who == "vLLM" and kind != "ordinary text" and at > args.vllm_limit:
                continue
            request = SimpleNamespace(
                request_id=kind,
                prompt_token_ids=list(prompt),
                prompt_embeds=None,
                sampling_params=SamplingParams(),
            )
            made = make(IncrementalDetokenizer, tokenizer, request)
            sides.append(Side(who, at, made, tokens))
    for _ in range(args.turns):
        for side in random.sample(sides, len(sides)):  # none always comes first
            grows = side.who == "vLLM" and kind != "ordinary text"
            side.spell(1 if grows else args.spell)  # or it would soon be at another position
    ours = {side.at: side.seconds for side in sides if side.who == "vllm-sink"}
    ratios = [late / early for late, early in zip(ours[LATE], ours[EARLY], strict=True)]
    return {
        "late_over_early": float(np.median(ratios)),
        "late_over_early_quartiles": np.percentile(ratios, [25, 75]).tolist(),
        "sides": [side.summary() for side in sides],
    }


def draw(result: dict[str, Any], path: Path) -> None:
    """Cost by position, a picture for each kind of answer."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    kinds = list(next(iter(result["tokenizers"].values())))
    figure, parts = pyplot.subplots(1, len(kinds), figsize=(12, 4), sharey=True)
    for axes, kind in zip(parts, kinds, strict=True):
        for color, (name, found) in zip("gbr", result["tokenizers"].items(), strict=True):
            for who, style in (("vllm-sink", "-"), ("vLLM", ":")):
                sides = [s for s in found[kind]["sides"] if s["who"] == who]
                middle = np.array([s["us_per_token"] for s in sides])
                spread = np.abs(np.array([s["quartiles"] for s in sides]).T - middle)
                axes.errorbar(
                    [s["at"] for s in sides],
                    middle,
                    yerr=spread,
                    fmt=f"{color}o{style}",
                    markersize=3,
                    label=f"{name}, {who}",
                )
        axes.set(title=kind, xlabel="tokens of the answer so far", xscale="log", yscale="log")
    parts[0].set_ylabel("microseconds per token, median and quartiles")
    parts[0].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def main() -> None:
    from tqdm import tqdm

    args = parse_args()
    text = args.text.read_text(encoding="utf-8")[:250_000]
    found: dict[str, dict[str, Any]] = {}
    with tqdm(total=9, unit="answer") as bar:
        for name, tokenizer in tokenizers(args.model).items():
            found[name] = {}
            for kind, tokens in answers(tokenizer, text).items():
                found[name][kind] = measure(tokenizer, kind, tokens, args)
                bar.update()
    result = {
        "benchmark": "detokenizer",
        "model": Path(args.model).name,
        "text": args.text.name,
        "spell": args.spell,
        "turns": args.turns,
        "vllm_limit": args.vllm_limit,
        "tokenizers": found,
    }
    record.write(args.json, result)
    draw(result, args.json.with_suffix(".png"))
    for name, kinds in found.items():
        for kind, one in kinds.items():
            told = ", ".join(
                f"{s['who']} at {s['at']:,} {s['us_per_token']:.2f}" for s in one["sides"]
            )
            low, high = one["late_over_early_quartiles"]
            print(
                f"{name}, {kind}: us per token {told}; ours at {LATE:,} over {EARLY:,} "
                f"{one['late_over_early']:.2f} ({low:.2f} to {high:.2f})"
            )
    print(f"-> {args.json}")


if __name__ == "__main__":
    main()
