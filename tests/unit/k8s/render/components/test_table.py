"""The table of components: what each row adds to a rendered tree."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import pytest
from pydantic import ValidationError

import k8s
from k8s.config import DeployConfig
from k8s.render.components.table import COMPONENTS, wanted_components

Objects: TypeAlias = list[dict[str, Any]]
FOLDERS = Path(k8s.__file__).parent / "manifests" / "components"

VERIFIED = {"verify_model": True, "loadtest_image": "a:1"}


def test_every_row_is_asked_for_below() -> None:
    (mark,) = test_a_row_is_wanted_by_its_field.pytestmark
    asked = {name for _, names in mark.args[1] for name in names}
    assert asked == set(COMPONENTS)


def test_every_folder_belongs_to_a_row() -> None:
    named = {component.folder for component in COMPONENTS.values()} - {None}
    assert named
    assert named == {folder.name for folder in FOLDERS.iterdir()}


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({}, []),
        ({"model_image": "models:1"}, ["model-image"]),
        ({"monitoring_namespace": "observability"}, ["service-monitor", "alerts", "dashboard"]),
        ({"run_as_user": None}, ["user"]),
        ({"placement": {"runtime_class": "nvidia"}}, ["placement"]),
        ({"queue_name": "team"}, ["queue"]),
        ({"model_claim": "models", "replicas": 2}, ["one-node"]),
        ({"model_claim": "models", "surge": True}, ["one-node"]),
        ({"model_claim": "m", "model_claim_mode": "ReadWriteMany", "replicas": 2}, []),
        (
            {"model_hub": {"repo": "a/b", "revision": "0" * 40}, **VERIFIED},
            ["verify-model", "model-hub"],
        ),
        (
            {"model_fetch": {"image": "a:1", "command": ["cp", "/model"]}, **VERIFIED},
            ["verify-model", "model-fetch"],
        ),
        (VERIFIED, ["verify-model"]),
        (
            {**VERIFIED, "release_key": {"config_map": "team-key"}},
            ["verify-model", "verify-signature"],
        ),
        ({"cache_claim": "kernels"}, ["cache-claim"]),
        ({"keys_secret_name": "team-keys"}, ["named-keys"]),
        ({"recording_claim": "recorded"}, ["recording"]),
        (
            {
                "keys_secret_name": "team-keys",
                "loadtest_image": "registry.example.com/tests:1",
                "adapters": {"claim": "adapters"},
            },
            ["named-keys", "adapters"],
        ),
        (
            {"autoscaling": {"by": "hpa", "max_replicas": 2}, "monitoring_namespace": "m"},
            ["service-monitor", "alerts", "dashboard", "hpa"],
        ),
        (
            {
                "autoscaling": {"by": "keda", "max_replicas": 2, "prometheus_url": "http://p"},
                "monitoring_namespace": "m",
            },
            ["service-monitor", "alerts", "dashboard", "keda"],
        ),
        ({"gateway": {"name": "g", "namespace": "gateways"}}, ["gateway", "route"]),
        ({"gateway": {"name": "g", "namespace": "gateways", "route": False}}, ["gateway"]),
        ({"endpoint_picker": {"name": "picker"}}, ["endpoint-picker"]),
        ({"image_pull_secrets": ["registry"]}, ["image-pull-secrets"]),
    ],
)
def test_a_row_is_wanted_by_its_field(options: dict[str, Any], wanted: list[str]) -> None:
    found = wanted_components(DeployConfig(**options))
    assert found == [COMPONENTS[name] for name in wanted]


def test_the_rule_for_metrics_is_found_by_name(
    tmp_path: Path, render_run: Callable[..., Path], objects_of: Callable[..., Objects]
) -> None:
    objects = objects_of(render_run(tmp_path / "out", monitoring_namespace="observability"))
    policies = {
        item["metadata"]["name"]: item["spec"]["ingress"]
        for item in objects
        if item["kind"] == "NetworkPolicy"
    }
    ports = [{"protocol": "TCP", "port": "http"}]
    labels = {"kubernetes.io/metadata.name": "observability"}
    assert policies == {
        "support-tickets-model-server": [{"from": [{"podSelector": {}}], "ports": ports}],
        "support-tickets-model-server-metrics": [
            {"from": [{"namespaceSelector": {"matchLabels": labels}}], "ports": ports}
        ],
    }


def test_pull_secrets_reach_the_server_and_the_load_test(
    tmp_path: Path, render_run: Callable[..., Path], objects_of: Callable[..., Objects]
) -> None:
    out = render_run(
        tmp_path / "out",
        image_pull_secrets=["registry", "team.registry"],
        loadtest_image="registry.example.com/tuneline-loadtest:0.1.0",
        monitoring_namespace="monitoring",
    )
    found = {
        item["kind"]: item["spec"]["template"]["spec"].get("imagePullSecrets")
        for item in objects_of(out, out / "load-test")
        if item["kind"] in ("Deployment", "Job")
    }
    expected = [{"name": "registry"}, {"name": "team.registry"}]
    assert found == {"Deployment": expected, "Job": expected}


@pytest.mark.parametrize("name", ["", "Registry", "a_b", "-a", "a..b", "a" * 254])
def test_a_secret_that_kubernetes_would_not_name_is_refused(name: str) -> None:
    with pytest.raises(ValidationError, match="image_pull_secrets"):
        DeployConfig(image_pull_secrets=(name,))
