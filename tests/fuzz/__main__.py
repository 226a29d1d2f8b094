"""``make fuzz``: a real server, fuzzed, beside one without the plugin; fails on any fault.

python -m tests.fuzz --minutes 30 --json build/fuzz.json
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

from tests.fuzz.bystander import Bystander
from tests.fuzz.campaign import Campaign, Report

#: Streams roll every two hundred tokens.
POLICY = [
    "--kv-policy",
    "sink",
    "--sink-tokens",
    "4",
    "--window-tokens",
    "60",
    "--segment-tokens",
    "256",
    "--sink-tenant-label",
    "user",
]
COMMON = [
    "--max-num-batched-tokens",
    "64",
    "--max-num-seqs",
    "16",
    "--enable-scale-out",
    "--enforce-eager",
    "--dtype",
    "float32",
    "--served-model-name",
    "tiny",
    "--disable-log-stats",
]
#: Of the tiny models of tests/models.
VOCABULARY = 512


def fuzz(folder: Path, logs: Path, seconds: float, clients: int, seed: int, stock: bool) -> Report:
    """Start both servers and run a campaign."""
    import torch

    from tests.e2e.servers import serve

    flags = [*COMMON]
    if torch.cuda.is_available():  # both share it
        flags += ["--gpu-memory-utilization", "0.3"]
    with ExitStack() as stack:
        url = stack.enter_context(serve(folder, logs / "sink.log", *flags, *POLICY)).url
        other = None
        if stock:
            other = stack.enter_context(serve(folder, logs / "stock.log", *flags)).url
        bystander = Bystander(url, "tiny", 600, [5 + i % 97 for i in range(50)])
        bystander.listen_alone()
        return Campaign(url, other, "tiny", VOCABULARY, seed).run(seconds, clients, bystander)


def judge(report: Report) -> list[str]:
    """What went wrong, as text."""
    wrong = [
        f"{f['route']}: {f['status']} {f['told'][:200]} {f['body'][:300]}" for f in report.faults
    ]
    wrong += [f"the stream beside: {told}" for told in report.bystander_wrong]
    wrong += [f"/health: {told}" for told in report.health_failures]
    return wrong


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path, default=Path("build/fuzz.json"))
    args = parser.parse_args()
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")

    from tests.e2e.engines import tiny

    with tempfile.TemporaryDirectory() as folder:
        model = tiny("llama-gqa", Path(folder))
        report = fuzz(model, Path(folder), args.minutes * 60, args.clients, args.seed, stock=True)
    args.json.parent.mkdir(parents=True, exist_ok=True)
    args.json.write_text(json.dumps(report.as_data(), indent=2))
    wrong = judge(report)
    print(
        f"{report.sent} requests in {report.seconds:.0f} s to {len(report.routes)} routes, "
        f"{len(report.fields)} fields at their edges; answers of 5xx: "
        f"{sum(report.vllms_own.values())} that vLLM itself gives, {len(report.faults)} that "
        "it does not; the stream beside: "
        f"{report.bystander_answers} answers, {report.bystander_tokens} tokens, "
        f"{len(report.bystander_wrong)} wrong; /health: {report.health_probes} asked, slowest "
        f"{report.health_slowest_s:.2f} s, {len(report.health_failures)} failed ({args.json})"
    )
    for told, count in report.vllms_own.most_common():
        print(f"vLLM's own, {count} times: {told}")
    for told in wrong:
        print(f"wrong: {told}", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
