"""The ``vllm-sink`` command."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from vllm_sink import __version__
from vllm_sink.commands.doctor import doctor
from vllm_sink.commands.errors import ServerError
from vllm_sink.commands.plan import plan
from vllm_sink.commands.stream import stream
from vllm_sink.commands.top import top
from vllm_sink.commands.usage_errors import explanation, usage_of
from vllm_sink.errors import PolicyError

#: Typer's exit status after Ctrl-C, which is a normal end of every command here.
INTERRUPTED = 130

HELP_OPTIONS = {"help_option_names": ["-h", "--help"]}

#: ``doctor`` hands every flag that is not its own to vLLM's parser, which reads ``_`` as ``-`` too.
#: A short option for help would be found inside of ``-dph`` or ``-cc.cudagraph_mode``.
DOCTOR_OPTIONS = {
    "allow_extra_args": True,
    "ignore_unknown_options": True,
    "help_option_names": ["--help"],
    "token_normalize_func": lambda name: name.replace("_", "-"),
}

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # plain help: rich is not imported for it
    context_settings=HELP_OPTIONS,
    subcommand_metavar="{doctor,plan,stream,top} ...",
)
app.command(
    context_settings=DOCTOR_OPTIONS,
    options_metavar="MODEL [OPTIONS] [any flag of vllm serve]",
)(doctor)
app.command(context_settings=HELP_OPTIONS)(plan)
app.command(context_settings=HELP_OPTIONS)(stream)
app.command(context_settings=HELP_OPTIONS)(top)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(__version__)
        raise typer.Exit


@app.callback()
def _tools(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    """Attention sinks (StreamingLLM) for vLLM: tools."""


def main(argv: list[str] | None = None) -> int:
    """Run a command; exit status 1: a refusal or a broken stream, 2: a usage or server error."""
    arguments = sys.argv[1:] if argv is None else argv
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    program = " ".join(["vllm-sink", *arguments[:1]])
    try:
        status = typer.main.get_command(app).main(
            arguments, prog_name="vllm-sink", standalone_mode=False
        )
    except typer.TyperException as error:
        print(f"{usage_of(error)}{program}: error: {explanation(error)}", file=sys.stderr)
        return 2
    except (PolicyError, ServerError) as error:
        print(f"{program}: error: {error}", file=sys.stderr)
        return 2
    return 0 if status in (None, INTERRUPTED) else int(status)


if __name__ == "__main__":
    sys.exit(main())
