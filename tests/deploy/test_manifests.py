"""Every manifest is valid, has what it should, and agrees with the rest of the repository."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
import yaml

from deploy.monitoring import prometheusrule
from tests.deploy.custom_resources import CLASSES, validate_rayservice, validate_with_class
from tests.deploy.manifests import KUBERNETES, OVERLAYS, build, flags, one, pods
from tests.monitoring.definitions import rules
from vllm_sink.serving.drain import MARGIN
from vllm_sink.serving.ray.settings import AppArgs

kubernetes_validate = pytest.importorskip("kubernetes_validate")

#: Kubernetes 1.30: the newest field in use is ``preStop.sleep``.
VERSIONS = ("1.30", kubernetes_validate.latest_version())

MONITORING = KUBERNETES.parent / "monitoring"


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_valid(overlay: str) -> None:
    seen = set()
    for resource in build(overlay):
        kind = resource["kind"]
        seen.add(kind)
        if kind in CLASSES or kind == "RayService":
            continue
        for version in VERSIONS:
            kubernetes_validate.validate(resource, version, strict=True)
    # The pods in a RayService are Kubernetes' own, too.
    for template in pods(overlay).values():
        pod = {"apiVersion": "v1", "kind": "Pod", **template}
        kubernetes_validate.validate(pod, VERSIONS[-1], strict=True)
    expected = {"Namespace", "ServiceAccount", "ConfigMap", "NetworkPolicy", "PodMonitor"}
    expected |= {"PrometheusRule", "PodDisruptionBudget"}
    expected |= {"RayService"} if overlay == "ray" else {"Deployment", "Service"}
    expected |= {"ScaledObject"} if overlay == "gpu" else set()
    assert seen == expected


@pytest.mark.parametrize("kind", list(CLASSES))
def test_custom_resources_valid(kind: str) -> None:
    validate_with_class(one("gpu", kind))


@pytest.mark.parametrize("kind", list(CLASSES))
def test_the_schemas_can_see(kind: str) -> None:
    broken = {**one("gpu", kind), "spec": "nothing"}
    with pytest.raises(AssertionError):
        validate_with_class(broken)


def test_rayservice_valid() -> None:
    validate_rayservice(one("ray", "RayService"))


def test_the_rayservice_schema_can_see() -> None:
    import jsonschema

    service = json.loads(json.dumps(one("ray", "RayService")))
    service["spec"]["rayClusterConfig"]["headGroupSpec"]["rayStartParam"] = {}
    with pytest.raises(jsonschema.ValidationError, match="rayStartParam"):
        validate_rayservice(service)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_confined(overlay: str) -> None:
    """No root, no writes outside volumes, no privilege escalation."""
    for template in pods(overlay).values():
        pod = template["spec"]
        assert pod["securityContext"]["runAsNonRoot"]
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in pod["containers"]:
            context = container["securityContext"]
            assert context["readOnlyRootFilesystem"]
            assert not context["allowPrivilegeEscalation"]
            assert context["capabilities"] == {"drop": ["ALL"]}
            assert container["resources"]["requests"].keys() >= {"cpu", "memory"}
            assert container["resources"]["limits"]["memory"]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_key_is_a_secret_that_must_be_there(overlay: str) -> None:
    assert flags(overlay)["sink-require-api-key"] is True
    for template in pods(overlay).values():
        (env,) = (
            e
            for c in template["spec"]["containers"]
            for e in c["env"]
            if e["name"] == "VLLM_API_KEY"
        )
        assert env["valueFrom"]["secretKeyRef"] == {"name": "vllm-sink-api-key", "key": "api-key"}
    assert not [r for r in build(overlay) if r["kind"] == "Secret"], "a secret in the repository"


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_a_pod_may_take_longer_than_its_streams(overlay: str) -> None:
    drain = flags(overlay)["shutdown-timeout"]
    for template in pods(overlay).values():
        pod = template["spec"]
        waits = sum(
            c.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
            for c in pod["containers"]
        )
        assert pod["terminationGracePeriodSeconds"] >= waits + drain + 2 * MARGIN


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_model_and_flags_are_in_one_place(overlay: str) -> None:
    model = flags(overlay)["model"]
    config = next(r for r in build(overlay) if "vllm.yaml" in (r.get("data") or {}))
    for resource in build(overlay):
        if resource is not config:
            assert model not in json.dumps(resource), resource["kind"]
    for template in pods(overlay).values():
        mounted = {v["configMap"]["name"] for v in template["spec"]["volumes"] if "configMap" in v}
        assert mounted == {config["metadata"]["name"]}


def test_rays_arguments_are_the_applications() -> None:
    (told,) = yaml.safe_load(one("ray", "RayService")["spec"]["serveConfigV2"])["applications"]
    assert told["import_path"] == "vllm_sink.serving.ray:app"
    assert told["args"].keys() <= AppArgs.__dataclass_fields__.keys()
    worker = one("ray", "RayService")["spec"]["rayClusterConfig"]["workerGroupSpecs"][0]
    assert worker["maxReplicas"] == told["args"]["max_replicas"]


def _rules_of(resource: dict[str, Any]) -> list[dict[str, Any]]:
    return [rule for group in resource["spec"]["groups"] for rule in group["rules"]]


def _text(rule: dict[str, Any]) -> str:
    return json.dumps(rule, sort_keys=True)  # kustomize sorts


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_rules_and_dashboard_are_the_repositorys(overlay: str) -> None:
    assert prometheusrule.TARGET.read_text() == prometheusrule.render(), "make manifests"
    found = _rules_of(one(overlay, "PrometheusRule"))
    assert sorted(map(_text, found)) == sorted(map(_text, rules()))
    dashboard = one(overlay, "ConfigMap", "vllm-sink-dashboard")
    assert dashboard["metadata"]["labels"]["grafana_dashboard"] == "1"
    assert dashboard["data"]["dashboard.json"] == (MONITORING / "dashboard.json").read_text()


def test_the_scaler_asks_for_what_is_recorded() -> None:
    (trigger,) = one("gpu", "ScaledObject")["spec"]["triggers"]
    asked = set(re.findall(r"vllm_sink:[a-z0-9_:]+", trigger["metadata"]["query"]))
    assert asked
    assert asked <= {rule.get("record") for rule in rules()}
    monitor = one("gpu", "PodMonitor")["metadata"]
    assert f'job="{monitor["namespace"]}/{monitor["name"]}"' in trigger["metadata"]["query"]
    # A Deployment that names a number of replicas would reset it at each apply.
    assert "replicas" not in one("gpu", "Deployment")["spec"]
