"""Commands that end by themselves, each in a fork of one process that has imported vLLM.

Importing vLLM takes longer than all that such a command does. What is imported before the fork is
vLLM alone: plugins are loaded, arguments parsed and configs made in the fork, by the command's own
entry point, as in a process of its own.
"""

from __future__ import annotations

import atexit
import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

#: What the command line of ``vllm`` imports.
IMPORTED = ("vllm.entrypoints.cli.main", "vllm.entrypoints.cli.serve", "vllm.engine.arg_utils")


def run(
    entry: str, *arguments: str, env: dict[str, str], timeout: float = 120
) -> subprocess.CompletedProcess[str]:
    """Run ``MODULE:FUNCTION`` with these arguments to its end.

    Args:
        entry: as a console script names it.
        arguments: what follows the program's name.
        env: all of the environment; what is read while vLLM is imported is the first call's.
        timeout: seconds, after which it is killed by SIGALRM.
    """
    parent = _parent(env.get("VLLM_LOGGING_LEVEL", ""))
    assert parent.stdin is not None
    assert parent.stdout is not None
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder) / "out", Path(folder) / "err"
        asked = {"entry": entry, "arguments": arguments, "env": env, "timeout": timeout}
        parent.stdin.write(json.dumps({**asked, "out": str(out), "err": str(err)}) + "\n")
        parent.stdin.flush()
        code = int(parent.stdout.readline())
        return subprocess.CompletedProcess(arguments, code, out.read_text(), err.read_text())


@cache
def _parent(logging_level: str) -> subprocess.Popen[str]:
    """The process that forks; vLLM reads the level of its log as it is imported."""
    parent = subprocess.Popen(
        [sys.executable, "-m", __name__],
        env={**os.environ, "VLLM_LOGGING_LEVEL": logging_level or "INFO"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    atexit.register(parent.kill)
    return parent


def _become(asked: dict[str, Any]) -> None:
    """What a command of its own would be, with its output in files."""
    for target, path in ((1, asked["out"]), (2, asked["err"])):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600), target)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    signal.alarm(round(asked["timeout"]))
    os.environ.clear()
    os.environ.update(asked["env"])
    module, _, function = asked["entry"].partition(":")
    sys.argv = [module.partition(".")[0], *asked["arguments"]]
    sys.exit(getattr(importlib.import_module(module), function)())


def main() -> None:
    """Fork for each line of stdin; the exit status goes to what was stdout."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what is printed while vLLM is imported is no answer
    for name in IMPORTED:
        importlib.import_module(name)
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            answers.close()
            _become(json.loads(line))
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), file=answers, flush=True)


if __name__ == "__main__":
    main()
