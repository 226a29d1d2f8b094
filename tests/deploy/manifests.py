"""The manifests of deploy/kubernetes, as ``kubectl apply -k`` would send them."""

from __future__ import annotations

import functools
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

KUBERNETES = Path(__file__).resolve().parents[2] / "deploy" / "kubernetes"
OVERLAYS = ("cpu", "gpu", "ray")

Resource = dict[str, Any]


def _command() -> list[str]:
    for name, more in (("kustomize", ["build"]), ("kubectl", ["kustomize"])):
        if shutil.which(name):
            return [name, *more]
    pytest.skip("neither kustomize nor kubectl is installed")


@functools.cache
def build(overlay: str) -> tuple[Resource, ...]:
    """An overlay's resources, by kustomize itself."""
    told = subprocess.run(
        [*_command(), str(KUBERNETES / "overlays" / overlay)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert told.returncode == 0, told.stderr
    return tuple(yaml.safe_load_all(told.stdout))


def one(overlay: str, kind: str, prefix: str = "") -> Resource:
    """The only resource of a kind whose name begins so."""
    found = [
        r for r in build(overlay) if r["kind"] == kind and r["metadata"]["name"].startswith(prefix)
    ]
    assert len(found) == 1, [r["metadata"]["name"] for r in found]
    return found[0]


def flags(overlay: str) -> Resource:
    """The file of ``vllm serve`` flags that an overlay mounts."""
    (config,) = (r for r in build(overlay) if "vllm.yaml" in (r.get("data") or {}))
    read: Resource = yaml.safe_load(config["data"]["vllm.yaml"])
    return read


def pods(overlay: str) -> dict[str, Resource]:
    """The pod templates of an overlay, by their owner."""
    found = {}
    for resource in build(overlay):
        if resource["kind"] == "Deployment":
            found["server"] = resource["spec"]["template"]
        if resource["kind"] == "RayService":
            cluster = resource["spec"]["rayClusterConfig"]
            found["head"] = cluster["headGroupSpec"]["template"]
            for group in cluster["workerGroupSpecs"]:
                found[group["groupName"]] = group["template"]
    assert found, f"overlay {overlay} has no pods"
    return found
