"""The ``vllm-sink`` command."""

from __future__ import annotations

import argparse
import json
import os
import sys

from vllm_sink import __version__
from vllm_sink.commands import plan, stream, top
from vllm_sink.commands.server import ServerError
from vllm_sink.errors import PolicyError
from vllm_sink.policy import POLICY_NAMES, KVPolicy


def _gib(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(
            f"{text!r} is not allowed; allowed: a positive number of GiB"
        )
    return value


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="vllm-sink", description="Attention sinks (StreamingLLM) for vLLM: tools."
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True)
    doctor = commands.add_parser(
        "doctor",
        help="say whether a model can stream, with which sinks and window, in how much KV",
        description="Reads a model's config, loads no weights. Exit status 1 if it is refused.",
    )
    doctor.add_argument("model", nargs="?", help="a model folder or name, as for vllm serve")
    doctor.add_argument(
        "--hooks", action="store_true", help="instead: every hook into this vLLM, and if it holds"
    )
    doctor.add_argument("--kv-policy", choices=[n for n in POLICY_NAMES if n != "full"])
    doctor.add_argument("--sink-tokens", type=int, metavar="S")
    doctor.add_argument("--window-tokens", type=int, metavar="W")
    doctor.add_argument("--segment-tokens", type=int, metavar="N")
    doctor.add_argument("--kv-gib", type=_gib, metavar="GIB", help="size of the KV pool")
    doctor.add_argument("--dtype", default="auto")
    doctor.add_argument("--max-model-len", type=int)
    doctor.add_argument("--block-size", type=int)
    doctor.add_argument("--trust-remote-code", action="store_true")
    doctor.add_argument("--json", action="store_true", help="print JSON")
    doctor.set_defaults(run=_doctor)
    for module, name, told in (
        (plan, "plan", "how many streams of what window fit on this GPU or in the named memory"),
        (stream, "stream", "follow an endless stream of a running server"),
        (top, "top", "watch the streams and the cache of a running server"),
    ):
        command = commands.add_parser(name, help=told, description=f"Says: {told}.")
        module.add(command)
        command.set_defaults(run=module.run)
    return parser


def _doctor(args: argparse.Namespace) -> int:
    if args.hooks:
        return _hooks(args)
    if args.model is None:
        raise PolicyError("MODEL", "nothing", "a model folder or name, or --hooks")
    from vllm_sink import doctor, plugin

    plugin.register()
    asked = {
        "name": args.kv_policy or "sink",
        "sink_tokens": args.sink_tokens,
        "window_tokens": args.window_tokens,
        "segment_tokens": args.segment_tokens,
    }
    kv_policy = KVPolicy.from_config({k: v for k, v in asked.items() if v is not None})
    verdict = doctor.diagnose(
        args.model,
        kv_policy,
        args.kv_gib,
        dtype=args.dtype,
        max_model_len=args.max_model_len,
        block_size=args.block_size,
        trust_remote_code=args.trust_remote_code,
    )
    print(doctor.dumps(verdict) if args.json else doctor.render(verdict))
    return 0 if verdict["supported"] else 1


def _hooks(args: argparse.Namespace) -> int:
    from vllm_sink.compat import probes, report

    findings = probes.check(probes.installed())
    version = probes.version()
    if args.json:
        print(json.dumps(report.as_data(findings, version), indent=2))
    else:
        print(report.render(findings, version))
    return 0 if all(f.holds for f in findings) else 1


def main(argv: list[str] | None = None) -> int:
    """Run a command; the exit status is 0, 1 for a refusal, 2 for an argument or a server."""
    args = _parser().parse_args(argv)
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    try:
        status: int = args.run(args)
    except (PolicyError, ServerError) as error:
        print(f"vllm-sink {args.command}: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 0
    return status


if __name__ == "__main__":
    sys.exit(main())
