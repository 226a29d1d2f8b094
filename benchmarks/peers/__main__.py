"""Tokens per second of every peer, taking turns.

    python -m benchmarks.peers --json OUT [--peers NAME;...] [--streams 1,4,16] [--tokens N]

Same model, same text, same cache size, one thread each. In every round each peer has a turn with
each number of streams, and is stopped during the others' turns. A turn is measured once all its
streams are past the cache size, and gives two figures: tokens per second by the clock and per
second of CPU time. On a busy machine the latter is what a peer achieves with a core of its own.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path
from typing import Any

from benchmarks import record
from benchmarks.peers import gguf
from benchmarks.peers.catalogue import PEERS
from benchmarks.peers.driver import Driver, DriverError
from benchmarks.peers.texts import text_tokens


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="benchmarks.peers",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--model", default="models/smollm2-135m-instruct", help="the checkpoint's folder")
    add("--text", type=Path, default=Path("models/texts/pride_and_prejudice.txt"))
    add("--peers", help="names separated by semicolons; default: all")
    add("--streams", default="1,4,16", help="numbers of concurrent streams, comma-separated")
    add("--prompt-tokens", type=int, default=320, help="of a stream, where the peer takes so many")
    add("--tokens", type=int, default=32, help="maximum tokens of a stream in a turn")
    add("--seconds", type=float, default=10.0, help="maximum seconds of a turn")
    add("--rounds", type=int, default=3)
    add("--sink-tokens", type=int, default=4)
    add("--cache-tokens", type=int, default=256, help="S + W")
    add("--json", required=True, type=Path, help="where the result goes")
    args = parser.parse_args()
    args.names = args.peers.split(";") if args.peers else [n for n in PEERS if PEERS[n].speed]
    if unknown := set(args.names) - set(PEERS):
        parser.error(f"--peers: {sorted(unknown)} is not allowed; allowed: {list(PEERS)}")
    args.streams = [int(part) for part in args.streams.split(",")]
    return args


class Bench:
    """All peers, loaded, and what they did."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        count = args.prompt_tokens * max(args.streams)
        tokens = text_tokens(args.model, args.text, count)
        width = args.prompt_tokens
        self.prompts = [tokens[i : i + width] for i in range(0, count, width)]
        self.drivers: dict[str, Driver] = {}
        self.told: dict[str, dict[str, Any]] = {}

    def load(self, name: str) -> None:
        entry, args = PEERS[name], self.args
        log = args.json.with_suffix(".logs") / f"{name.replace(' ', '-')}.log"
        driver = Driver(entry.driver, entry.environment, log, entry.variables)
        self.drivers[name] = driver
        row: dict[str, Any] = {"policy": entry.policy, "turns": [], "errors": []}
        self.told[name] = row
        settings = {
            "model": args.model,
            "gguf": str(gguf.path(entry.gguf)),
            "sink_tokens": args.sink_tokens,
            "cache_tokens": args.cache_tokens,
            "dtype": "bfloat16",
            "streams": max(args.streams),
        }
        try:
            row |= driver.ask("load", settings=settings)
        except DriverError as error:
            self.fail(name, error)

    def fail(self, name: str, error: DriverError) -> None:
        """Drop a peer that failed, and keep its error."""
        self.told[name]["errors"].append(str(error))
        self.drivers.pop(name).stop()

    def turn(self, name: str, streams: int, round_number: int) -> None:
        """One peer, so many streams."""
        driver = self.drivers[name]
        try:
            driver.ask("begin", prompts=self.prompts[:streams])
            # The first tokens after a start differ from the rest.
            told = driver.ask("decode", tokens=self.args.tokens, seconds=self.args.seconds)
            peak = driver.ask("memory")["peak_bytes"]
        except DriverError as error:
            self.fail(name, error)
            return
        told |= {"streams": streams, "round": round_number, "peak_bytes": peak}
        self.told[name]["turns"].append(told)

    def stop(self) -> None:
        for driver in self.drivers.values():
            driver.stop()


def summary(values: list[float]) -> dict[str, float]:
    """Median, minimum and maximum."""
    return {"median": statistics.median(values), "least": min(values), "most": max(values)}


def table(told: dict[str, dict[str, Any]], streams: list[int]) -> list[dict[str, Any]]:
    """A row for each peer and number of streams."""
    rows = []
    for name, row in told.items():
        for count in streams:
            turns = [t for t in row["turns"] if t["streams"] == count and t["tokens"]]
            if not turns:
                continue
            rows.append(
                {
                    "peer": name,
                    "streams": count,
                    "tokens_per_second": summary([t["tokens"] / t["seconds"] for t in turns]),
                    "tokens_per_cpu_second": summary(
                        [t["tokens"] / max(t["cpu_seconds"], 0.01) for t in turns]
                    ),
                    "peak_mib": max(t["peak_bytes"] for t in turns) / 2**20,
                    "rounds": len(turns),
                }
            )
    return rows


def draw(result: dict[str, Any], path: Path) -> None:
    """Tokens per CPU-second, a panel for each number of streams, the fastest on top."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    counts = result["streams"]
    figure, panels = pyplot.subplots(1, len(counts), figsize=(5.2 * len(counts), 5), squeeze=False)
    for axes, count in zip(panels[0], counts, strict=True):
        rows = [row for row in result["table"] if row["streams"] == count]
        rows.sort(key=lambda row: row["tokens_per_cpu_second"]["median"])
        for i, row in enumerate(rows):
            value = row["tokens_per_cpu_second"]
            colour = "tab:green" if row["peer"].startswith("vllm-sink") else "tab:grey"
            axes.barh(i, value["median"], color=colour)
            axes.plot([value["least"], value["most"]], [i, i], color="black", linewidth=1)
            axes.text(value["most"], i, f" {value['median']:.1f}", va="center", fontsize=8)
        axes.set_yticks(range(len(rows)), [row["peer"] for row in rows], fontsize=8)
        axes.set(title=f"{count} stream{'s' if count > 1 else ''}", xlabel="tokens / CPU-second")
        axes.margins(x=0.15)
    figure.suptitle(
        f"{result['model']}, {result['sink_tokens']} sinks in a cache of "
        f"{result['cache_tokens']} tokens, one thread: all streams together, median of "
        f"{result['rounds']} rounds (line: least to most)"
    )
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def write(bench: Bench) -> dict[str, Any]:
    """The result so far."""
    args = bench.args
    keys = ("prompt_tokens", "tokens", "seconds", "rounds", "sink_tokens", "cache_tokens")
    result = {
        "benchmark": "peers",
        "model": Path(args.model).name,
        "text": args.text.name,
        "dtype": "bfloat16",
        "threads": 1,
        "streams": args.streams,
        **{key: getattr(args, key) for key in keys},
        "table": table(bench.told, args.streams),
        "peers": bench.told,
    }
    record.write(args.json, result)
    if result["table"]:
        draw(result, args.json.with_suffix(".png"))
    return result


def main() -> None:
    from tqdm import tqdm

    args = parse_args()
    gguf.make()
    bench = Bench(args)
    try:
        for name in tqdm(args.names, desc="loading", unit="peer"):
            bench.load(name)
        turns = len(args.names) * args.rounds * len(args.streams)
        with tqdm(total=turns, desc="turns") as bar:
            for i in range(args.rounds):
                # Each round starts with another peer.
                names = args.names[i % len(args.names) :] + args.names[: i % len(args.names)]
                for streams in args.streams:
                    for name in names:
                        bar.set_postfix_str(f"{name}, {streams}")
                        if name in bench.drivers:
                            bench.turn(name, streams, i)
                        bar.update()
                    result = write(bench)
    finally:
        bench.stop()
    for row in result["table"]:
        wall, cpu = row["tokens_per_second"], row["tokens_per_cpu_second"]
        print(
            f"{row['peer']:26}{row['streams']:4} streams {cpu['median']:8.1f} tokens/CPU-s "
            f"({cpu['least']:.1f}-{cpu['most']:.1f}) {wall['median']:8.1f} tokens/s by the clock "
            f"{row['peak_mib']:7.0f} MiB"
        )


if __name__ == "__main__":
    main()
