"""Runs the experiments one after the other, then draws the pictures and fills the tables.

    python -m benchmarks.paper.evidence [--gpu] [--only figure3,table2] [--out FOLDER]

Each run is a process of its own and writes one JSON file. A run whose file exists is skipped
(``FORCE=1`` runs everything), so a long session may be interrupted.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

from benchmarks.paper import pictures
from benchmarks.paper.runs import Run, cpu_runs, gpu_runs


def parse_args() -> tuple[argparse.Namespace, list[Run]]:
    parser = argparse.ArgumentParser(
        prog="benchmarks.paper.evidence",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--gpu", action="store_true", help="only what needs a GPU")
    parser.add_argument("--only", help="some experiments or runs, comma-separated")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/out/evidence"))
    parser.add_argument("--list", action="store_true", help="print the commands, run nothing")
    args = parser.parse_args()
    runs = gpu_runs() if args.gpu else cpu_runs()
    if args.only:
        wanted = set(args.only.split(","))
        known = {run.experiment for run in runs}
        unknown = wanted - known - {run.name for run in runs}
        if unknown:
            parser.error(
                f"--only: {', '.join(sorted(unknown))} is not allowed; allowed: "
                f"{', '.join(sorted(known))}, or a run's name, as --list has them"
            )
        runs = [run for run in runs if wanted & {run.experiment, run.name}]
    return args, runs


def environment() -> dict[str, str]:
    """One thread, because two on two busy cores were slower; nothing is downloaded."""
    quiet = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "OMP_NUM_THREADS": "1"}
    quiet |= {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_LOGGING_LEVEL": "WARNING"}
    return quiet | dict(os.environ)


def main() -> None:
    from tqdm import tqdm

    args, runs = parse_args()
    if args.list:
        for run in runs:
            print("python -m", *run.command(str(args.out)))
        return
    force = os.environ.get("FORCE", "0") not in ("", "0")
    args.out.mkdir(parents=True, exist_ok=True)
    failed = []
    for run in (bar := tqdm(runs, unit="run", desc="evidence")):
        bar.set_postfix_str(run.name)
        if (args.out / f"{run.name}.json").exists() and not force:
            tqdm.write(f"{run.name}: there already")
            continue
        if run.model and not Path(run.model).is_dir():
            tqdm.write(f"{run.name}: left out, {run.model} is not there: make gemma")
            continue
        command = [sys.executable, "-m", *run.command(str(args.out))]
        with (args.out / f"{run.name}.log").open("w") as log:
            done = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, env=environment())
        last = (args.out / f"{run.name}.log").read_text().strip().splitlines()[-1:]
        tqdm.write(f"{run.name}: {last[0] if last else ''}")
        if done.returncode:
            failed.append(run.name)
    drawn = pictures.draw_all([args.out], args.out)
    print(f"pictures: {', '.join(str(path) for path in drawn) or 'none'}")
    print("tables: python -m benchmarks.paper.page --results", args.out, "--print")
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}; their logs are in {args.out}")


if __name__ == "__main__":
    main()
