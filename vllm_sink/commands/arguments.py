"""Arguments that more than one command has."""

from __future__ import annotations

from typing import Annotated

import typer

from vllm_sink.commands.key import KEY_VARIABLES

#: Bounds of a positive number; they exclude 0 and infinity.
SMALLEST, LARGEST = 1e-9, 1e9

Model = Annotated[
    str, typer.Argument(metavar="MODEL", help="a model folder or name, as for vllm serve")
]

KvGib = Annotated[
    float | None,
    typer.Option(min=SMALLEST, max=LARGEST, metavar="GiB", help="size of the KV pool"),
]

Json = Annotated[bool, typer.Option("--json", help="print JSON")]

Url = Annotated[
    str, typer.Argument(metavar="URL", help="the server, such as http://localhost:8000")
]

ApiKey = Annotated[
    str | None,
    typer.Option(
        metavar="KEY",
        help=f"the server's key (default: {', then '.join(KEY_VARIABLES)} from the environment, "
        "where other users of this machine cannot see it)",
    ),
]
