"""The way of requests from a gateway to the server."""

from __future__ import annotations

from k8s.config import PORT
from k8s.render.components.component import Component
from k8s.render.facts import Document, Facts, Files, server_name
from k8s.render.kustomize import INSTANCE_LABEL

POOL = {"group": "inference.networking.k8s.io", "kind": "InferencePool"}


def fill_gateway(files: Files, facts: Facts) -> None:
    """Let the namespace of the gateway's pods in."""
    gateway = facts.config.gateway
    assert gateway is not None  # noqa: S101 (the row is wanted only with it)
    (ingress,) = files["network-policy.yaml"]["spec"]["ingress"]
    (peer,) = ingress["from"]
    namespace = gateway.pods_namespace or gateway.namespace
    peer["namespaceSelector"]["matchLabels"]["kubernetes.io/metadata.name"] = namespace


def fill_route(files: Files, facts: Facts) -> None:
    """Put the gateway, its host names, the paths and the canary's share into the route."""
    gateway = facts.config.gateway
    assert gateway is not None  # noqa: S101 (the row is wanted only with it)
    spec = files["route.yaml"]["spec"]
    spec["parentRefs"] = [{"name": gateway.name, "namespace": gateway.namespace}]
    if gateway.hostnames:
        spec["hostnames"] = list(gateway.hostnames)
    (rule,) = spec["rules"]
    rule["matches"] = [{"path": {"type": "PathPrefix", "value": path}} for path in facts.paths]
    share = gateway.canary.weight if gateway.canary else 0
    rule["backendRefs"] = [_backend(facts, facts.name, 100 - share)]
    if gateway.canary is not None:
        rule["backendRefs"].append(_backend(facts, gateway.canary.run, share))


def _backend(facts: Facts, run: str, weight: int) -> Document:
    """Return the Service or the InferencePool of a run, under its name in the cluster."""
    if facts.config.endpoint_picker is not None:
        return {**POOL, "name": server_name(run), "weight": weight}
    return {"name": server_name(run), "port": PORT, "weight": weight}


def fill_pool(files: Files, facts: Facts) -> None:
    """Put the endpoint picker and the labels of this run's pods into the pool."""
    picker = facts.config.endpoint_picker
    assert picker is not None  # noqa: S101 (the row is wanted only with it)
    spec = files["pool.yaml"]["spec"]
    # kustomize adds its labels to no selector of a custom resource.
    spec["selector"]["matchLabels"][INSTANCE_LABEL] = facts.name
    spec["endpointPickerRef"] = {
        "name": picker.name,
        "port": {"number": picker.port},
        "failureMode": picker.failure_mode,
    }


COMPONENTS: dict[str, Component] = {
    "gateway": Component(
        wanted=lambda config: config.gateway is not None,
        folder="gateway",
        fill=fill_gateway,
    ),
    "route": Component(
        wanted=lambda config: config.gateway is not None and config.gateway.route,
        folder="route",
        fill=fill_route,
    ),
    "endpoint-picker": Component(
        wanted=lambda config: config.endpoint_picker is not None,
        folder="endpoint-picker",
        fill=fill_pool,
    ),
}
