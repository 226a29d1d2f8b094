"""Schemas of custom resources: Prometheus's operator, KEDA (npm), KubeRay (its CRD)."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from tests.deploy.manifests import Resource

#: Where ``make schemas`` puts the npm packages of schemas/package.json.
SCHEMAS = Path(__file__).resolve().parents[2] / "build" / "schemas" / "node_modules"

#: KubeRay's own file, ``ray.io_rayservices.yaml`` of its repository; no package has it.
CRD_VARIABLE = "KUBERAY_CRD"

#: A kind's class in the npm packages, whose ``validate()`` is made from its CRD.
_OPERATOR = "@kubernetes-models/prometheus-operator/monitoring.coreos.com/v1"
CLASSES = {
    "PodMonitor": f"{_OPERATOR}/PodMonitor",
    "PrometheusRule": f"{_OPERATOR}/PrometheusRule",
    "ScaledObject": "@kubernetes-models/keda/keda.sh/v1alpha1/ScaledObject",
}

_SCRIPT = """
const [path, kind] = process.argv.slice(1);
const resource = JSON.parse(require("fs").readFileSync(0));
new (require(path)[kind])(resource).validate();
"""


def validate_with_class(resource: Resource) -> None:
    """Validate a resource against the schema of its npm class."""
    if not SCHEMAS.is_dir() or shutil.which("node") is None:
        pytest.skip("no schemas of custom resources: make schemas (needs npm)")
    kind = resource["kind"]
    told = subprocess.run(
        ["node", "-e", _SCRIPT, str(SCHEMAS / CLASSES[kind]), kind],
        input=json.dumps(resource),
        capture_output=True,
        text=True,
        check=False,
    )
    assert told.returncode == 0, told.stderr


def rayservice_schema() -> dict[str, Any]:
    """KubeRay's schema of a RayService, with nothing allowed that it does not name."""
    path = os.environ.get(CRD_VARIABLE, "")
    if not Path(path).is_file():
        pytest.skip(
            f"KubeRay's CRD is not here: name its ray.io_rayservices.yaml in {CRD_VARIABLE}"
        )
    text = Path(path).read_text(encoding="utf-8")
    crd = next(d for d in yaml.safe_load_all(text) if d)
    (schema,) = (
        v["schema"]["openAPIV3Schema"] for v in crd["spec"]["versions"] if v["name"] == "v1"
    )
    schema["properties"]["metadata"] = {"type": "object"}
    strict(schema)
    return schema


def strict(schema: Any) -> None:
    """Kubernetes drops fields that a CRD does not name; a test must not."""
    if isinstance(schema, list):
        for part in schema:
            strict(part)
    if not isinstance(schema, dict):
        return
    for key in [k for k in schema if str(k).startswith("x-kubernetes-")]:
        if key == "x-kubernetes-int-or-string":
            schema["type"] = ["integer", "string"]
            schema.pop("anyOf", None)
    if isinstance(schema.get("properties"), dict) and not schema.get(
        "x-kubernetes-preserve-unknown-fields"
    ):
        if "additionalProperties" not in schema and schema["properties"].keys() - {"type"}:
            schema["additionalProperties"] = False
        for part in schema["properties"].values():
            strict(part)
    for key in ("items", "additionalProperties", "anyOf", "oneOf", "allOf"):
        strict(schema.get(key))


def validate_rayservice(resource: Resource) -> None:
    """Validate a RayService against KubeRay's CRD."""
    jsonschema.Draft202012Validator(rayservice_schema()).validate(resource)
