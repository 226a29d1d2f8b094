"""The runs behind the evidence: their names, commands and requirements."""

from __future__ import annotations

from dataclasses import dataclass

MODEL = "models/smollm2-135m-instruct"
#: Another family, most of whose layers have a window of their own. Only `make gemma` makes it:
#: whoever has it accepts its terms.
GEMMA = "models/gemma-3-270m"
NOVEL = "models/texts/pride_and_prejudice.txt"
NOVELS = "models/texts/austen.txt"

#: Tokens that a policy keeps in the experiments on perplexity: the paper's 4 + 508, which evicts
#: before it appends, is S 4, W 509 here.
CACHE = 513
SINKS = 4

#: Ten times SmolLM2's context, and three times.
LONG, SHORT = 81_920, 24_576
#: Three times Gemma's context, and what full attention reads of it.
GEMMA_LONG, GEMMA_FULL = 98_304, 49_152

#: Where positions have to be remapped or not, on a GPU; the novels have 995,507 of SmolLM2's tokens
#: and begin again.
MILLION = 1_000_000


@dataclass(frozen=True)
class Run:
    """One process, one result file.

    Attributes:
        name: of its result, without the suffix.
        experiment: which part of the evidence it belongs to.
        module: of ``benchmarks``.
        arguments: of its command line, all but ``--json``.
        gpu: whether it needs one.
        model: a folder that must exist; "" if every run ensures it.
    """

    name: str
    experiment: str
    module: str
    arguments: str
    gpu: bool = False
    model: str = ""

    def command(self, folder: str) -> list[str]:
        """What follows ``python -m``."""
        return [self.module, *self.arguments.split(), "--json", f"{folder}/{self.name}.json"]


def quality(
    name: str,
    experiment: str,
    sinks: int | None,
    window: int | None = None,
    tokens: int = SHORT,
    more: str = "",
    gpu: bool = False,
    model: str = MODEL,
) -> Run:
    """Perplexity by position; no window: full attention."""
    policy = "--policy full"
    if window is not None:
        policy = f"--policy sink --sink-tokens {sinks} --window-tokens {window}"
        if not sinks and "--true-positions" not in more:
            policy = f"--policy window --window-tokens {window}"
    text = NOVEL if tokens <= GEMMA_LONG else NOVELS
    arguments = f"--model {model} --text {text} --tokens {tokens} {policy} {more}"
    needs = model if model != MODEL else ""
    return Run(name, experiment, "benchmarks.quality", arguments.strip(), gpu, needs)


def square(
    window: int, dtype: str, tokens: int = SHORT, gpu: bool = False, model: str = MODEL
) -> list[Run]:
    """Sinks or none, cache positions or true ones, all with the same size of the cache."""
    more = f"--dtype {dtype}" + (" --repeat --bin 2048 --chunk 4096 --kv-gib 4" if gpu else "")
    family = "square" if model == MODEL else "square-gemma"
    if gpu:
        family += "-million"
    elif model != MODEL:
        more += " --bin 2048"
    runs = []
    for kind, sinks in (("sinks", SINKS), ("none", 0)):
        for positions, flag in (("cache", ""), ("true", " --true-positions")):
            if sinks == 0 and flag and not gpu:
                continue  # the same computation: the test of true positions shows it
            runs.append(
                quality(
                    f"{family}-{kind}-{positions}-w{window}-{dtype}",
                    "square" if model == MODEL else "gemma",
                    sinks,
                    window + SINKS - sinks,
                    tokens,
                    more + flag,
                    gpu,
                    model,
                )
            )
    return runs


def streameval(policy: str, more: str, tokens: int) -> Run:
    return Run(
        f"streameval-{policy}",
        "streameval",
        "benchmarks.paper.streameval",
        f"--model {MODEL} --policy {policy} {more} --tokens {tokens}",
    )


def figure10(name: str, shape: str, more: str, gpu: bool = False) -> Run:
    arguments = f"--shape {shape} {more}"
    return Run(name, "figure10", "benchmarks.paper.figure10", arguments, gpu)


def cpu_runs() -> list[Run]:
    """About an hour on two idle cores."""
    window = CACHE - SINKS
    return [
        # The README has 24,576 tokens of these three as well.
        quality("sink", "table2", SINKS, window),
        quality("window", "table2", 0, CACHE),
        quality("full", "figure3", None),
        *square(window, "float32")[1:2],
        quality("figure3-sink", "figure3", SINKS, window, LONG),
        quality("figure3-window", "figure3", 0, CACHE, LONG),
        Run(
            "figure3-recompute",
            "figure3",
            "benchmarks.paper.recompute",
            f"--model {MODEL} --text {NOVEL} --tokens {LONG} --cache-tokens {CACHE} --every 2",
        ),
        *(quality(f"table2-{s}-sinks", "table2", s, CACHE - s) for s in (1, 2, 8)),
        quality("table1-newlines", "table1", SINKS, window, more="--newlines 4"),
        quality("table1-window", "table1", 0, CACHE, more="--newlines 4"),
        *(quality(f"table6-{n}", "table6", SINKS, n - SINKS) for n in (257, 1025, 2049)),
        *square(window, "bfloat16"),
        streameval("sink", f"--sink-tokens {SINKS} --window-tokens {window}", LONG // 5),
        streameval("window", f"--window-tokens {CACHE}", LONG // 5),
        streameval("full", "", LONG // 5),
        figure10("figure10-cpu", MODEL, "--dtype float32 --rounds 3 --steps 8"),
        *square(window, "bfloat16", GEMMA_LONG, model=GEMMA),
        quality(
            "gemma-full",
            "gemma",
            None,
            None,
            GEMMA_FULL,
            "--dtype bfloat16 --bin 2048",
            model=GEMMA,
        ),
    ]


def gpu_runs() -> list[Run]:
    """For one GPU of 80 GB."""
    return [
        *(
            run
            for model in (MODEL, GEMMA)
            for window in (CACHE - SINKS, 2045)
            for dtype in ("float32", "bfloat16")
            for run in square(window, dtype, MILLION, gpu=True, model=model)
        ),
        figure10("figure10-gpu-batch-1", "llama-2-13b", "--cache-tokens 4096 --rounds 9", True),
        # 64 windows of 4,096 tokens are 215 GB of KV in all 40 layers; 8 fit 80 GB, and time goes
        # with layers on both sides.
        figure10(
            "figure10-gpu-batch-64",
            "llama-2-13b",
            "--cache-tokens 4096 --batch 64 --layers 8 --rounds 5",
            True,
        ),
        figure10(
            "figure10-gpu-sizes",
            "llama-2-13b",
            "--cache-tokens 256,512,1024,2048,4096 --layers 8 --rounds 5",
            True,
        ),
    ]
