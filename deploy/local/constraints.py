#!/usr/bin/env python3
"""Prints pip's constraints for what is added to a Python that has vLLM already.

    python3 deploy/local/constraints.py requirements/cuda.txt

What is there keeps its version; of what is not there the lock names the version.
"""

import importlib.metadata
import re
import sys
from pathlib import Path


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def constraints(lock: str) -> list[str]:
    """``lock`` is the text of a file of ``name==version`` lines."""
    lines = re.findall(r"^([\w.-]+)==([^\s;]+)", lock, re.MULTILINE)
    locked = {canonical(name): version for name, version in lines}
    # Of two with one name the first on sys.path is imported, so it goes in last.
    found = list(importlib.metadata.distributions())[::-1]
    present = {canonical(one.name): one.version for one in found if one.name}
    return sorted(f"{name}=={version}" for name, version in (locked | present).items())


if __name__ == "__main__":
    print(*constraints(Path(sys.argv[1]).read_text(encoding="utf-8")), sep="\n")
