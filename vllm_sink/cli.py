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
        description="Says what vllm serve with the same flags would say; every flag of it is taken "
        "(vllm serve --help). Reads a model's config, loads no weights. Exit status 1 if it is "
        "refused. The policy is sink unless --kv-policy names another.",
    )
    doctor.add_argument("model", nargs="?", help="a model folder or name, as for vllm serve")
    doctor.add_argument(
        "--hooks", action="store_true", help="instead: every hook into this vLLM, and if it holds"
    )
    _add_doctors_own(doctor)
    doctor.set_defaults(run=_hooks)
    for module, name, told in (
        (plan, "plan", "how many streams of what window fit on this GPU or in the named memory"),
        (stream, "stream", "follow an endless stream of a running server"),
        (top, "top", "watch the streams and the cache of a running server"),
    ):
        command = commands.add_parser(name, help=told, description=f"Says: {told}.")
        module.add(command)
        command.set_defaults(run=module.run)
    return parser


def _add_doctors_own(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--kv-gib", type=_gib, metavar="GIB", help="size of the KV pool")
    parser.add_argument("--json", action="store_true", help="print JSON")


def _doctor(arguments: list[str]) -> int:
    """``doctor`` of a model: by vLLM's own parser, which takes seconds to import."""
    from vllm_sink import plugin
    from vllm_sink.commands import doctor

    plugin.register()
    parser = doctor.parser()
    _add_doctors_own(parser)
    args = parser.parse_args(arguments)
    if args.model_tag is None and args.model == parser.get_default("model"):
        raise PolicyError("MODEL", "nothing", "a model folder or name, or --hooks")
    verdict = doctor.diagnose_command(args, args.kv_gib)
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
    """Run a command; the exit status is 0, 1 for a refusal or a stream that broke, 2 for an
    argument or a server.
    """
    arguments = sys.argv[1:] if argv is None else argv
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    command = arguments[0] if arguments else ""
    try:
        if command == "doctor" and not {"--hooks", "-h", "--help"} & set(arguments):
            return _doctor(arguments[1:])
        args = _parser().parse_args(arguments)
        status: int = args.run(args)
    except (PolicyError, ServerError) as error:
        print(f"vllm-sink {command}: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 0
    return status


if __name__ == "__main__":
    sys.exit(main())
