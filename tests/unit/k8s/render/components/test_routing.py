"""Routes and pools: the names of a run in the cluster, and the share of a canary."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import pytest

from tuneline.core.errors import ConfigError

Objects: TypeAlias = list[dict[str, Any]]
GATEWAY = {
    "name": "public",
    "namespace": "gateways",
    "pods_namespace": "envoy",
    "hostnames": ["models.example.com"],
    "canary": {"run": "next", "weight": 10},
}


def test_a_canary_gets_its_share_and_the_gateway_gets_in(
    tmp_path: Path, render_run: Callable[..., Path], objects_of: Callable[..., Objects]
) -> None:
    objects = objects_of(render_run(tmp_path / "out", gateway=GATEWAY))
    (route,) = (item["spec"] for item in objects if item["kind"] == "HTTPRoute")
    assert route["parentRefs"] == [{"name": "public", "namespace": "gateways"}]
    assert route["hostnames"] == ["models.example.com"]
    (rule,) = route["rules"]
    assert rule["timeouts"] == {"request": "0s", "backendRequest": "0s"}
    assert rule["backendRefs"] == [
        {"name": "support-tickets-model-server", "port": 8000, "weight": 90},
        {"name": "next-model-server", "port": 8000, "weight": 10},
    ]
    peers = [
        peer["namespaceSelector"]["matchLabels"]["kubernetes.io/metadata.name"]
        for item in objects
        if item["metadata"]["name"] == "support-tickets-model-server-gateway"
        for ingress in item["spec"]["ingress"]
        for peer in ingress["from"]
    ]
    assert peers == ["envoy"]


def test_a_canary_lets_the_gateway_in_and_brings_no_route(
    tmp_path: Path, render_run: Callable[..., Path], objects_of: Callable[..., Objects]
) -> None:
    gateway = {"name": "public", "namespace": "gateways", "route": False}
    objects = objects_of(render_run(tmp_path / "out", name="next", gateway=gateway))
    assert "HTTPRoute" not in {item["kind"] for item in objects}
    (policy,) = (item for item in objects if item["metadata"]["name"].endswith("-gateway"))
    assert policy["spec"]["podSelector"]["matchLabels"] == {
        "app.kubernetes.io/name": "model-server",
        "app.kubernetes.io/instance": "next",
    }


def test_a_run_is_not_its_own_canary(tmp_path: Path, render_run: Callable[..., Path]) -> None:
    gateway = {**GATEWAY, "canary": {"run": "support-tickets", "weight": 10}}
    with pytest.raises(ConfigError, match=r"canary\.run: 'support-tickets' is this run"):
        render_run(tmp_path / "out", gateway=gateway)


def test_a_route_leads_to_the_pool_where_there_is_one(deployed: Objects) -> None:
    (route,) = (item["spec"] for item in deployed if item["kind"] == "HTTPRoute")
    (pool,) = (item for item in deployed if item["kind"] == "InferencePool")
    assert route["rules"][0]["backendRefs"] == [
        {
            "group": "inference.networking.k8s.io",
            "kind": "InferencePool",
            "name": pool["metadata"]["name"],
            "weight": 100,
        }
    ]
    assert pool["spec"]["selector"]["matchLabels"] == {
        "app.kubernetes.io/name": "model-server",
        "app.kubernetes.io/instance": "support-tickets",
    }
    assert pool["spec"]["endpointPickerRef"] == {
        "name": "picker", "port": {"number": 9002}, "failureMode": "FailOpen",
    }  # fmt: skip
