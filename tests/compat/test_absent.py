"""With ``--kv-policy full``, or uninstalled, vLLM is unchanged: nothing replaced, same output."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.engines import tiny

#: ``vllm serve`` until its engine's config is built, then what in vLLM is not vLLM's own.
SERVE = """
import json, sys
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.plugins import load_general_plugins
from vllm.utils.argparse_utils import FlexibleArgumentParser

load_general_plugins()
args = AsyncEngineArgs.add_cli_args(FlexibleArgumentParser()).parse_args(sys.argv[1:])
AsyncEngineArgs.from_cli_args(args).create_engine_config()

def is_ours(value):
    # What compat.install puts there: a wrapper, an extension, a class of this package.
    if type(value).__module__ == "vllm_sink.compat.install":
        return True
    if issubclass(type(value), type):
        return value.__module__.startswith("vllm_sink.")
    return bool(getattr(getattr(value, "__func__", value), "__vllm_sink__", ()))


found = []
for name, module in list(sys.modules.items()):
    if name.partition(".")[0] != "vllm":
        continue
    # No isinstance: a module that is imported when it is asked for anything may not be installed.
    classes = {k: v for k, v in vars(module).items() if issubclass(type(v), type)}
    found += [f"{name}.{key}" for key, cls in classes.items() if is_ours(cls)]
    for cls in classes.values():
        for key, value in list(vars(cls).items()):
            if is_ours(value) or key == "sink_stats":
                found.append(f"{cls.__qualname__}.{key}")
print("FOUND", json.dumps(sorted(set(found))))
"""

SAY = """
import json, sys
from tests.e2e.engines import greedy, prompt, random_tokens
from vllm import LLM

settings = json.loads(sys.argv[2])
llm = LLM(sys.argv[1], enforce_eager=True, dtype="float32", max_model_len=128, **settings)
(said,) = llm.generate(prompt(random_tokens(40)), greedy(60), use_tqdm=False)
told = [[t, step[t].logprob] for t, step in
        zip(said.outputs[0].token_ids, said.outputs[0].logprobs)]
print("SAID", json.dumps(told))
"""


def python(script: str, *arguments: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def told(output: str, mark: str) -> Any:
    (line,) = [line for line in output.splitlines() if line.startswith(mark)]
    return json.loads(line.removeprefix(mark))


@pytest.fixture(scope="module")
def folder(tiny_folder: Path) -> Path:
    return tiny("llama-gqa", tiny_folder)


@pytest.mark.parametrize("flags", [[], ["--kv-policy", "full"]], ids=["none", "full"])
def test_a_server_without_a_policy_has_nothing_replaced(flags: list[str], folder: Path) -> None:
    output = python(SERVE, "--model", str(folder), "--enforce-eager", *flags)
    assert told(output, "FOUND") == []


def test_a_server_with_one_has(folder: Path) -> None:
    """So that the test above can fail."""
    output = python(SERVE, "--model", str(folder), "--enforce-eager", "--kv-policy", "sink")
    assert "InputProcessor.process_inputs" in told(output, "FOUND")


def test_the_same_words_as_without_the_plugin(folder: Path) -> None:
    full = {"additional_config": {"kv_policy": "full"}}
    without, with_it = (
        told(python(SAY, str(folder), json.dumps(settings), VLLM_PLUGINS=plugins), "SAID")
        for settings, plugins in (({}, ""), (full, "sink"))
    )
    assert with_it == without
    assert len(without) == 60
