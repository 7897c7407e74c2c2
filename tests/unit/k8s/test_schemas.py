"""Every rendered object against Kubernetes' own schemas, strictly, and against CEL rules."""

from __future__ import annotations

import copy
import functools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cel
import jsonschema
import kubernetes_validate
import pytest
from referencing import Registry, Resource

import k8s

ROOM = Path(k8s.__file__).parent
VERSIONS = ["1.34", "1.35", "1.36", "1.37"]
SCHEMAS = Path(kubernetes_validate.__file__).parent / "kubernetes-json-schema"
CUSTOM = {
    "AnalysisTemplate": "argoproj.io_analysistemplates",
    "HTTPRoute": "gateway.networking.k8s.io_httproutes",
    "InferencePool": "inference.networking.k8s.io_inferencepools",
    "JobSet": "jobset.x-k8s.io_jobsets",
    "LeaderWorkerSet": "leaderworkerset.x-k8s.io_leaderworkersets",
    "LLMInferenceService": "serving.kserve.io_llminferenceservices",
    "PrometheusRule": "monitoring.coreos.com_prometheusrules",
    "ScaledObject": "keda.sh_scaledobjects",
    "ServiceMonitor": "monitoring.coreos.com_servicemonitors",
    "TrainingRuntime": "trainer.kubeflow.org_trainingruntimes",
    "TrainJob": "trainer.kubeflow.org_trainjobs",
}
"""The schemas of kinds that are not Kubernetes' own."""


def _closed(schema: Any) -> Any:
    """A CustomResourceDefinition drops unknown fields in silence; here they are errors."""
    if isinstance(schema, list):
        return [_closed(entry) for entry in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {key: _closed(value) for key, value in schema.items()}
    if schema.get("type") == "object" and isinstance(schema.get("properties"), dict):
        closed.setdefault("additionalProperties", False)
    return closed


@functools.cache
def definition(kind: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((ROOM / "crds" / f"{CUSTOM[kind]}.json").read_text())
    assert found["kind"] == kind
    return found


@functools.cache
def custom_validator(kind: str) -> Any:
    # `metadata: {type: object}` has no properties in a CustomResourceDefinition.
    return jsonschema.Draft202012Validator(_closed(definition(kind)["schema"]))


@functools.cache
def registry(version: str) -> Any:
    folder = SCHEMAS / f"v{version}.0-local-strict"
    definitions = json.loads((folder / "_definitions.json").read_text())
    return Resource.from_contents(definitions) @ Registry()


@functools.cache
def validator(kind: str, api_version: str, version: str) -> Any:
    """Return the validator that `kubernetes_validate.validate(strict=True)` makes, once."""
    group, _, name = api_version.rpartition("/")
    file = f"{kind.lower()}-{group.partition('.')[0]}{'-' if group else ''}{name}.json"
    path = SCHEMAS / f"v{version}.0-local-strict" / file
    if not path.exists():
        raise kubernetes_validate.SchemaNotFoundError(kind, version, api_version)
    schema = json.loads(path.read_text())
    return jsonschema.Draft202012Validator(
        schema, registry=Resource.from_contents(schema) @ registry(version)
    )


def check(item: dict[str, Any], version: str) -> None:
    if item["kind"] in CUSTOM:
        found = definition(item["kind"])
        assert item["apiVersion"] == f"{found['group']}/{found['version']}"
        custom_validator(item["kind"]).validate(item)
        assert broken_rules(item, found["schema"], "") == []
    else:
        validator(item["kind"], item["apiVersion"], version).validate(item)


def broken_rules(value: Any, schema: dict[str, Any], path: str) -> list[str]:
    """Return the CEL rules (x-kubernetes-validations) that a value breaks, with their places."""
    return [
        f"{where or '.'}: {rule}"
        for where, rule, inner in rules(defaulted(value, schema), schema, path)
        # A rule about a change of an object has nothing to compare with here.
        if "oldSelf" not in rule and cel.evaluate(rule, {"self": inner}) is not True
    ]


def defaulted(value: Any, schema: dict[str, Any]) -> Any:
    """Return a value with the defaults of its schema, which an API server sets before CEL."""
    if isinstance(value, dict):
        fields = schema.get("properties", {})
        given = {key: inner["default"] for key, inner in fields.items() if "default" in inner}
        return {key: defaulted(v, fields.get(key, {})) for key, v in (given | value).items()}
    if isinstance(value, list):
        return [defaulted(inner, schema.get("items", {})) for inner in value]
    return value


def rules(value: Any, schema: dict[str, Any], path: str) -> Iterator[tuple[str, str, Any]]:
    for rule in schema.get("x-kubernetes-validations", []):
        yield path, rule["rule"], value
    if isinstance(value, dict):
        extra = schema.get("additionalProperties")
        for key, inner in value.items():
            found = schema.get("properties", {}).get(key, extra if isinstance(extra, dict) else {})
            yield from rules(inner, found, f"{path}.{key}")
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from rules(inner, schema.get("items", {}), f"{path}.{index}")


@pytest.mark.parametrize("version", VERSIONS)
def test_every_object_fits_its_schema(manifests: list[dict[str, Any]], version: str) -> None:
    assert manifests
    for item in manifests:
        check(item, version)


def test_the_validator_is_the_packages_own(deployed: list[dict[str, Any]]) -> None:
    (job,) = (item for item in deployed if item["kind"] == "Job")
    kubernetes_validate.validate(job, VERSIONS[-1], strict=True)
    job["spec"]["backofflimit"] = 0
    with pytest.raises(jsonschema.ValidationError) as theirs:
        kubernetes_validate.validate(job, VERSIONS[-1], strict=True)
    with pytest.raises(jsonschema.ValidationError) as ours:
        check(job, VERSIONS[-1])
    assert ours.value.message == theirs.value.message


def test_every_custom_kind_is_rendered_and_has_rules_that_are_asked(
    trees: dict[str, list[dict[str, Any]]],
) -> None:
    custom = [item for objects in trees.values() for item in objects if item["kind"] in CUSTOM]
    assert {item["kind"] for item in custom} == set(CUSTOM)
    asked = {
        item["kind"] for item in custom for _ in rules(item, definition(item["kind"])["schema"], "")
    }
    assert asked == {
        "HTTPRoute", "InferencePool", "JobSet", "LLMInferenceService", "ScaledObject",
        "TrainingRuntime", "TrainJob",
    }  # fmt: skip


def test_the_base_fits_its_schema(objects_of: Callable[..., list[dict[str, Any]]]) -> None:
    objects = objects_of(ROOM / "manifests/base")
    assert {item["kind"] for item in objects} == {
        "Deployment", "NetworkPolicy", "PodDisruptionBudget", "Service", "ServiceAccount",
    }  # fmt: skip
    for item in objects:
        for version in VERSIONS:
            check(item, version)


def test_a_full_deployment_has_every_kind(deployed: list[dict[str, Any]]) -> None:
    assert sorted(item["kind"] for item in deployed) == [
        "ConfigMap", "ConfigMap", "ConfigMap", "Deployment", "HTTPRoute", "InferencePool", "Job",
        "NetworkPolicy", "NetworkPolicy", "NetworkPolicy", "NetworkPolicy", "PodDisruptionBudget",
        "PrometheusRule", "ScaledObject", "Service", "ServiceAccount", "ServiceAccount",
        "ServiceMonitor",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "path", "value"),
    [
        ("Deployment", ("spec", "template", "spec", "terminationGracePeriod"), 90),
        ("Deployment", ("spec", "replicas"), "two"),
        ("Service", ("spec", "port"), 8000),
        ("NetworkPolicy", ("spec", "ingres"), []),
        ("Job", ("spec", "backofflimit"), 0),
        ("ServiceMonitor", ("spec", "endpoint"), []),
        ("ServiceMonitor", ("spec", "endpoints"), "http"),
        ("PrometheusRule", ("spec", "group"), []),
    ],
)
def test_a_misspelt_or_mistyped_field_is_found(
    deployed: list[dict[str, Any]], kind: str, path: tuple[str, ...], value: Any
) -> None:
    item = copy.deepcopy(next(item for item in deployed if item["kind"] == kind))
    check(item, VERSIONS[-1])
    inner = item
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    with pytest.raises(jsonschema.ValidationError):
        check(item, VERSIONS[-1])


@pytest.mark.parametrize(
    ("kind", "spec", "rule"),
    [
        (
            "InferencePool",
            {"endpointPickerRef": {"kind": "Service", "name": "x"}},
            "has(self.port)",
        ),
        ("InferencePool", {"targetPorts": [{"number": 1}, {"number": 1}]}, "exists_one"),
        ("ScaledObject", {"minReplicaCount": 5, "maxReplicaCount": 2}, "self.minReplicaCount <="),
        ("HTTPRoute", {"rules": [{"timeouts": {"request": "1s", "backendRequest": "2s"}}]}, "dur"),
        (
            "JobSet",
            {
                "startupPolicy": {"startupPolicyOrder": "InOrder"},
                "replicatedJobs": [{"name": "a", "dependsOn": [{"name": "b", "status": "Ready"}]}],
            },
            "startupPolicyOrder == 'InOrder'",
        ),
        ("TrainingRuntime", {"mlPolicy": {"torch": {}, "jax": {}}}, "has(self.torch)"),
        (
            "LLMInferenceService",
            {"replicas": 1, "scaling": {"maxReplicas": 2, "keda": {"triggers": [{}]}}},
            "has(self.replicas) && has(self.scaling)",
        ),
    ],
)
def test_a_broken_cel_rule_is_found(kind: str, spec: dict[str, Any], rule: str) -> None:
    found = broken_rules({"spec": spec}, definition(kind)["schema"], "")
    assert [rule in entry for entry in found] == [True], found


def test_a_kind_without_a_schema_is_an_error() -> None:
    # The command-line tool only warns about these and exits with 0.
    removed = {"apiVersion": "policy/v1beta1", "kind": "PodDisruptionBudget", "metadata": {}}
    with pytest.raises(kubernetes_validate.SchemaNotFoundError):
        check(removed, VERSIONS[-1])
