"""``vllm-sink doctor``: a verdict on a model, or on this vLLM."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from vllm_sink.commands.arguments import Json, KvGib
from vllm_sink.errors import PolicyError


def doctor(
    context: typer.Context,
    hooks: Annotated[
        bool, typer.Option("--hooks", help="list the hooks into this vLLM and if they hold instead")
    ] = False,
    kv_gib: KvGib = None,
    as_json: Json = False,
) -> int:
    """Say whether a model can stream, with which sinks and window, in how much KV.

    MODEL is a model folder or name, as for vllm serve. Every flag of vllm serve is accepted (vllm
    serve --help), and the verdict is what the server would say. Reads a model's config, loads no
    weights. Exit status 1 if it is refused. The policy is sink unless --kv-policy names another.
    """
    if "-h" in context.args:
        print(context.get_help())
        return 0
    if hooks:
        return _check_hooks(context.args, as_json)
    return _check_model(context.args, kv_gib, as_json)


def _check_model(arguments: list[str], kv_gib: float | None, as_json: bool) -> int:
    """The verdict on a command line of ``vllm serve``, whose parser takes seconds to import."""
    from vllm_sink import plugin
    from vllm_sink.commands import diagnosis, verdict

    plugin.register()
    parser = diagnosis.parser()
    args = parser.parse_args(arguments)
    if args.model_tag is None and args.model == parser.get_default("model"):
        raise PolicyError("MODEL", "nothing", "a model folder or name, or --hooks")
    found = diagnosis.diagnose_command(args, kv_gib)
    print(verdict.dumps(found) if as_json else verdict.render(found))
    return 0 if found["supported"] else 1


def _check_hooks(arguments: list[str], as_json: bool) -> int:
    from vllm_sink.compat import probes, report

    if len(arguments) > 1 or any(argument.startswith("-") for argument in arguments):
        raise PolicyError("--hooks", " ".join(arguments), "no flag of vllm serve beside it")
    findings = probes.check(probes.installed())
    version = probes.version()
    if as_json:
        print(json.dumps(report.as_data(findings, version), indent=2))
    else:
        print(report.render(findings, version))
    return 0 if all(f.holds for f in findings) else 1
