"""Every rendered object against Kubernetes' own schemas, strictly."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

import k8s

ROOM = Path(k8s.__file__).parent
VERSIONS = ["1.34", "1.36"]
# The schemas of kinds that are not Kubernetes' own.
CUSTOM = {"ServiceMonitor": "monitoring.coreos.com_servicemonitors.yaml"}


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


def _custom_schema(kind: str, api_version: str) -> Any:
    definition = yaml.safe_load((ROOM / "crds" / CUSTOM[kind]).read_text())
    group, version = api_version.split("/")
    assert definition["spec"]["group"] == group
    (schema,) = (
        entry["schema"]["openAPIV3Schema"]
        for entry in definition["spec"]["versions"]
        if entry["name"] == version
    )
    # `metadata: {type: object}` has no properties in a CustomResourceDefinition.
    return _closed(schema)


def check(item: dict[str, Any], version: str) -> None:
    if item["kind"] in CUSTOM:
        jsonschema.Draft202012Validator(_custom_schema(item["kind"], item["apiVersion"])).validate(
            item
        )
    else:
        kubernetes_validate.validate(item, version, strict=True)


@pytest.mark.parametrize("version", VERSIONS)
def test_every_object_fits_its_schema(manifests: list[dict[str, Any]], version: str) -> None:
    assert manifests
    for item in manifests:
        check(item, version)


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
        "ConfigMap", "Deployment", "Job", "NetworkPolicy", "NetworkPolicy", "PodDisruptionBudget",
        "Service", "ServiceAccount", "ServiceMonitor",
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


def test_a_kind_without_a_schema_is_an_error() -> None:
    # The command-line tool only warns about these and exits with 0.
    removed = {"apiVersion": "policy/v1beta1", "kind": "PodDisruptionBudget", "metadata": {}}
    with pytest.raises(kubernetes_validate.SchemaNotFoundError):
        check(removed, VERSIONS[-1])
