"""The commands of ``vllm-sink`` in processes of their own, as a user runs them."""

from __future__ import annotations

import subprocess
import sys

from tests.e2e import forked
from tests.e2e.servers import environment


def environment_of_commands(key: str = "") -> dict[str, str]:
    """A server's environment, with this API key and no other."""
    return environment() | {
        "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_API_KEY": key,
        "OPENAI_API_KEY": "",
    }


def run_command(
    *arguments: str, key: str = "", timeout: float = 120
) -> subprocess.CompletedProcess[str]:
    """Run ``vllm-sink`` with these arguments until it exits; ``timeout`` in seconds."""
    return subprocess.run(
        [sys.executable, "-m", "vllm_sink.cli", *arguments],
        env=environment_of_commands(key),
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def run_with_vllm(*arguments: str) -> subprocess.CompletedProcess[str]:
    """``vllm-sink`` with a command that imports vLLM, in a fork of a process that has it."""
    return forked.run("vllm_sink.cli:main", *arguments, env=environment_of_commands())
