"""Questions about a stream's own past, in the manner of the paper's StreamEval (section 4.3).

    python -m benchmarks.paper.streameval --model DIR --policy sink --window-tokens 509 \\
        --json out.json

The paper's data was never released, so this is a similar task, generated from a seed::

    Line 4127, quiet fox: river
    Line 934, red house: apple
    ...
    Question: Line 4127, quiet fox: river

Every few lines a question asks for a line a given number of tokens back; ``distances`` are inside
the window and outside. Each line is asked for once. A turn is a request whose prompt is the whole
stream so far, as a chat's is; what the server still holds of it is not recomputed. After each
answer the right one is appended, so that every policy reads the same text.

Two measures, both of the one token that is the word:

* exact: the greedy answer is the word;
* choice: the word is the most probable of the 32 that lines may hold (chance: 1 in 32).
"""

from __future__ import annotations

import argparse
import math
import random
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import engines, record

#: Plain words; those that are not one token of the model are left out.
WORDS = (
    "apple river stone bread horse table garden window mountain silver orange castle winter "
    "bridge music doctor forest island letter market mirror paper queen rabbit school summer "
    "tiger village water yellow kitchen engine"
)

#: A small model finds a number alone too seldom to tell forgetting from not finding.
ADJECTIVES = (
    "red blue green old young big small dark bright cold warm quiet loud happy sad rich poor fast "
    "slow wild tall short deep round heavy brave"
)
NOUNS = (
    "cat dog bird fish fox bear wolf lion king boy girl man ship house tree road lake hill moon "
    "star farm tower field gate boat wheel clock lamp chair knife bell drum"
)

DISTANCES = (50, 100, 200, 300, 400, 480, 600, 800, 1600, 3200)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="benchmarks.paper.streameval",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", required=True, help="a model folder or name")
    parser.add_argument("--policy", choices=("sink", "window", "full"), default="sink")
    parser.add_argument("--sink-tokens", type=int)
    parser.add_argument("--window-tokens", type=int)
    parser.add_argument("--tokens", type=int, default=12_288, help="length of the stream")
    parser.add_argument("--lines", type=int, default=3, help="lines between two questions")
    parser.add_argument("--distances", default=",".join(map(str, DISTANCES)), help="in tokens")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--json", required=True, type=Path, help="where the result goes")
    args = parser.parse_args()
    try:
        args.distances = sorted({int(d) for d in args.distances.split(",")})
    except ValueError:
        parser.error(f"--distances: {args.distances} is not allowed; allowed: as in 50,100,600")
    if args.distances[0] < 1:
        parser.error(f"--distances: {args.distances[0]} is not allowed; allowed: at least 1")
    if args.tokens < 2 * args.distances[0]:
        parser.error(f"--tokens: {args.tokens} is not allowed; allowed: twice a distance or more")
    return args


@dataclass
class Question:
    """One turn.

    Attributes:
        prompt_tokens: length of the stream up to the answer.
        distance: tokens from the word in its line to the answer.
        nominal: the distance that was asked for.
        word: the answer, a token.
    """

    prompt_tokens: int
    distance: int
    nominal: int
    word: int


@dataclass
class Stream:
    """The whole text, made before any of it is served: it does not depend on the policy.

    Attributes:
        tokens: of the text.
        questions: in order.
        words: tokens that lines may hold.
    """

    tokens: list[int] = field(default_factory=list)
    questions: list[Question] = field(default_factory=list)
    words: list[int] = field(default_factory=list)


def make(tokenizer: Any, length: int, lines: int, distances: list[int], seed: int) -> Stream:
    """A stream of at most ``length`` tokens.

    Raises:
        SystemExit: the tokenizer splits too many of the words.
    """

    def encode(text: str) -> list[int]:
        ids: list[int] = tokenizer.encode(text, add_special_tokens=False)
        return ids

    chance = random.Random(seed)
    stream = Stream(words=[ids[0] for w in WORDS.split() if len(ids := encode(f" {w}")) == 1])
    if len(stream.words) < 8:
        raise SystemExit(f"--model: only {len(stream.words)} of the words are one token of it")
    names = [f"{a} {n}" for a in ADJECTIVES.split() for n in NOUNS.split()]
    lines_left: list[str] = []
    end = encode("\n")
    # Where the word of each line that was not asked for yet stands.
    unasked: dict[str, int] = {}
    words: dict[str, int] = {}
    stream.tokens += encode(tokenizer.bos_token) if _has_bos(tokenizer) else []
    stream.tokens += encode("Each line has a word. Questions ask for the words of lines.\n")
    waiting: list[int] = []
    while True:
        turn: list[int] = []
        for _ in range(lines):
            if not lines_left:
                chance.shuffle(names)
                numbers = chance.sample(range(100, 10_000), len(names))
                lines_left = [f"Line {n}, {name}:" for n, name in zip(numbers, names, strict=True)]
            line, word = lines_left.pop(), chance.choice(stream.words)
            turn += encode(line)
            unasked[line], words[line] = len(stream.tokens) + len(turn), word
            turn += [word, *end]
        stream.tokens += turn
        waiting = waiting or chance.sample(distances, len(distances))
        nominal = waiting.pop()
        # The answer will stand as far behind as a question is long, give or take a token.
        answer = len(stream.tokens) + len(encode(f"Question: {line}"))
        wanted = min(unasked, key=lambda x: abs(answer - unasked[x] - nominal))
        asked = encode(f"Question: {wanted}")
        answer = len(stream.tokens) + len(asked)
        distance = answer - unasked.pop(wanted)
        if answer + 1 + len(end) > length:
            return stream
        stream.tokens += asked
        # The stream's start has nothing that far back.
        if abs(distance - nominal) <= 25 + nominal // 10:
            stream.questions.append(Question(answer, distance, nominal, words[wanted]))
        stream.tokens += [words[wanted], *end]


def _has_bos(tokenizer: Any) -> bool:
    return tokenizer.bos_token is not None and len(tokenizer.encode("a")) > len(
        tokenizer.encode("a", add_special_tokens=False)
    )


def ask(llm: Any, stream: Stream) -> list[dict[str, Any]]:
    """Serve the stream turn by turn; the result of each question."""
    from tqdm import tqdm
    from vllm import SamplingParams

    params = SamplingParams(
        max_tokens=1, temperature=0.0, logprob_token_ids=stream.words, detokenize=False
    )
    told = []
    with tqdm(total=len(stream.tokens), unit="tok", desc="asking") as bar:
        for question in stream.questions:
            prompt = {"prompt_token_ids": stream.tokens[: question.prompt_tokens]}
            (output,) = llm.generate(prompt, params, use_tqdm=False)
            logprobs = {t: entry.logprob for t, entry in output.outputs[0].logprobs[0].items()}
            best = max(stream.words, key=lambda t: logprobs[t])
            told.append(
                {
                    "at": question.prompt_tokens,
                    "distance": question.distance,
                    "nominal": question.nominal,
                    "exact": output.outputs[0].token_ids[0] == question.word,
                    "choice": best == question.word,
                    "logprob": logprobs[question.word],
                    "cached": output.num_cached_tokens,
                }
            )
            bar.update(question.prompt_tokens - bar.n)
    return told


def by_distance(told: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Accuracy at each distance, with the half-width of its 95% interval (Wilson)."""
    rows = []
    for nominal in sorted({t["nominal"] for t in told}):
        part = [t for t in told if t["nominal"] == nominal]
        row: dict[str, Any] = {
            "distance": nominal,
            "questions": len(part),
            "mean_distance": sum(t["distance"] for t in part) / len(part),
            "word_probability": math.fsum(math.exp(t["logprob"]) for t in part) / len(part),
        }
        for measure in ("exact", "choice"):
            row[measure] = sum(t[measure] for t in part) / len(part)
            row[f"{measure}_interval"] = wilson(sum(t[measure] for t in part), len(part))
        rows.append(row)
    return rows


def wilson(hits: int, count: int, z: float = 1.96) -> list[float]:
    """The 95% interval of a proportion."""
    p = hits / count
    middle = (p + z * z / (2 * count)) / (1 + z * z / count)
    half = z * math.sqrt(p * (1 - p) / count + z * z / (4 * count * count)) / (1 + z * z / count)
    return [max(0.0, middle - half), min(1.0, middle + half)]


def main() -> None:
    args = parse_args()
    kv_policy = {
        "name": args.policy,
        "sink_tokens": args.sink_tokens,
        "window_tokens": args.window_tokens,
    }
    llm = engines.start(
        args.model, kv_policy, args.tokens + 64, dtype=args.dtype, prefix_caching=True
    )
    stream = make(llm.get_tokenizer(), args.tokens, args.lines, args.distances, args.seed)
    if not stream.questions:
        raise SystemExit(f"--tokens: {args.tokens} is too short for a question at any distance")
    begin = time.perf_counter()
    told = ask(llm, stream)
    native = engines.native_context(args.model)
    policy = llm.llm_engine.vllm_config.additional_config.get("kv_policy", {})
    result = {
        "benchmark": "streameval",
        "model": Path(args.model).name,
        "policy": args.policy,
        "sink_tokens": policy.get("sink_tokens", 0),
        "window_tokens": policy.get("window_tokens"),
        "native_context": native,
        "dtype": args.dtype,
        "seed": args.seed,
        "tokens": len(stream.tokens),
        "words": len(stream.words),
        "lines_between_questions": args.lines,
        "seconds": time.perf_counter() - begin,
        "by_distance": by_distance([t for t in told if t["at"] <= native]),
        "by_distance_past_context": by_distance([t for t in told if t["at"] > native]),
        "questions": told,
    }
    record.write(args.json, result)
    for where in ("by_distance", "by_distance_past_context"):
        for row in result[where]:
            print(
                f"{where[12:] or 'within context':16} {row['distance']:6} tokens back: exact "
                f"{row['exact']:.2f}, choice {row['choice']:.2f} of {row['questions']}"
            )


if __name__ == "__main__":
    main()
