"""Rules on autoscalers, routes and queries: every name exists, and silence never scales."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence

from k8s.rules.objects import (
    LABEL_LENGTH,
    SETTINGS,
    Object,
    env,
    matches,
    namespace,
    of_kind,
    pods,
    quantity,
    ref,
    servers,
)
from tuneline.core.vllm_metrics import TUNELINE_METRICS, VLLM_METRICS

_SERIES = re.compile(r"([a-zA-Z_:][\w:]*)\{([^}]*)\}")
_LABEL = re.compile(r'(\w+)="([^"]*)"')
TOLERATED = 1.1
"""An autoscaler changes nothing within 10 % of its target."""
INFERENCE = "inference.networking.k8s.io/"


def series_names() -> set[str]:
    """Return the names of all series that a server shows, and Prometheus' own `up`."""
    names = {"up"}
    for name, kind in {**VLLM_METRICS, **TUNELINE_METRICS}.items():
        histogram = {f"{name}_bucket", f"{name}_sum", f"{name}_count"}
        names |= histogram if kind == "histogram" else {name}
    return names


def queries(objects: Sequence[Object]) -> list[tuple[Object, str]]:
    """Return every PromQL query, with the object that holds it; dashboards have variables."""
    found: list[tuple[Object, str]] = []
    for item in of_kind(objects, "PrometheusRule"):
        found += [
            (item, rule["expr"]) for group in item["spec"]["groups"] for rule in group["rules"]
        ]
    for item in of_kind(objects, "ScaledObject"):
        found += [
            (item, trigger["metadata"]["query"])
            for trigger in item["spec"]["triggers"]
            # The wake query is the user's own, about another server's metrics.
            if trigger.get("name") != "wake"
        ]
    for item in of_kind(objects, "ConfigMap"):
        if board := item.get("data", {}).get("dashboard.json"):
            found += [
                (item, target["expr"])
                for panel in json.loads(board)["panels"]
                for target in panel["targets"]
            ]
    return found


def _queries(objects: Sequence[Object]) -> Iterator[str]:
    known = series_names()
    services = {(s["metadata"]["name"], namespace(s)) for s in of_kind(objects, "Service")}
    for item, query in queries(objects):
        series = _SERIES.findall(query)
        if not series:
            yield f"{ref(item)}: the query {query!r} selects no series"
        for name, selector in series:
            if name not in known:
                yield f"{ref(item)}: no server of ours shows the metric {name}"
            labels = dict(_LABEL.findall(selector))
            target = (labels.get("service", ""), labels.get("namespace", ""))
            if item["kind"] != "ConfigMap" and target not in services:
                yield f"{ref(item)}: {name} is asked of service {target}; it is not here"


def _scaled(objects: Sequence[Object], item: Object) -> Iterator[str]:
    """Check an autoscaler's target and its limits."""
    target = item["spec"]["scaleTargetRef"]
    name = (target.get("kind", "Deployment"), target["name"])
    hit = [
        other
        for other in objects
        if (other["kind"], other["metadata"]["name"]) == name
        and namespace(other) == namespace(item)
    ]
    if not hit:
        yield f"{ref(item)}: scales {'/'.join(name)}, which is not in the manifests"
    for other in hit:
        if "replicas" in other["spec"]:
            yield f"{ref(other)}: has replicas, so that an apply takes back what scales it"


def _shown_loads(objects: Sequence[Object]) -> Iterator[str]:
    """A pod that refuses below the autoscaler's target never shows a load that adds a pod."""
    targets = []
    for item in of_kind(objects, "HorizontalPodAutoscaler"):
        targets += [
            (item, metric["pods"]["target"]["averageValue"])
            for metric in item["spec"].get("metrics", [])
            if "pods" in metric
        ]
    for item in of_kind(objects, "ScaledObject"):
        targets += [
            (item, trigger["metadata"]["threshold"])
            for trigger in item["spec"]["triggers"]
            if trigger.get("name") == "in-flight"
        ]
    for pod, container in servers(objects):
        settings = json.loads(env(container).get(SETTINGS, {}).get("value") or "{}")
        most = settings.get("max_in_flight")
        for item, target in targets:
            if most is not None and most < TOLERATED * quantity(target):
                yield (
                    f"{ref(item)}: {pod.where} refuses requests above {most} in flight, and a pod "
                    f"is added above {TOLERATED * quantity(target):g}; raise "
                    "serving.limits.max_in_flight"
                )


def _autoscalers(objects: Sequence[Object]) -> Iterator[str]:
    for item in of_kind(objects, "HorizontalPodAutoscaler"):
        yield from _scaled(objects, item)
        for metric in item["spec"].get("metrics", []):
            name = metric.get("pods", {}).get("metric", {}).get("name")
            if name not in series_names():
                yield f"{ref(item)}: no server of ours shows the metric {name}"
        if item["spec"].get("minReplicas", 1) < 1:
            yield f"{ref(item)}: minReplicas 0 needs a feature gate that is off by default"
    for item in of_kind(objects, "ScaledObject"):
        yield from _scaled(objects, item)
        for trigger in item["spec"]["triggers"]:
            is_wake = trigger.get("name") == "wake"
            if not is_wake and trigger["metadata"].get("ignoreNullValues") != "false":
                yield (
                    f"{ref(item)}: trigger {trigger.get('name')} needs ignoreNullValues "
                    '"false"; a missing metric would count as no load'
                )
        name = (
            item["spec"].get("advanced", {}).get("horizontalPodAutoscalerConfig", {}).get("name")
            or f"keda-hpa-{item['metadata']['name']}"
        )
        if len(name) > LABEL_LENGTH:
            yield (
                f"{ref(item)}: its autoscaler {name} has {len(name)} characters; expected at most "
                f"{LABEL_LENGTH}"
            )
    scaled = [
        (ref(item), item["spec"]["scaleTargetRef"]["name"])
        for kind in ("HorizontalPodAutoscaler", "ScaledObject")
        for item in of_kind(objects, kind)
    ]
    if len({name for _, name in scaled}) < len(scaled):
        yield f"{' and '.join(who for who, _ in scaled)} scale one Deployment"


def _routes(objects: Sequence[Object]) -> Iterator[str]:
    for item in of_kind(objects, "HTTPRoute"):
        own = 0
        for rule in item["spec"]["rules"]:
            if rule.get("timeouts", {}).get("request") != "0s":
                yield f"{ref(item)}: timeouts.request must be 0s; a gateway would cut streams"
            for backend in rule["backendRefs"]:
                kind = backend.get("kind", "Service")
                hit = [
                    other
                    for other in of_kind(objects, kind)
                    if other["metadata"]["name"] == backend["name"]
                ]
                own += len(hit)
                ports = [port["port"] for o in hit for port in o["spec"].get("ports", [])]
                if hit and kind == "Service" and backend.get("port") not in ports:
                    yield f"{ref(item)}: port {backend.get('port')} is not one of {ports}"
        if not own:
            yield f"{ref(item)}: none of its backends is in the manifests"


def _pools(objects: Sequence[Object]) -> Iterator[str]:
    for item in of_kind(objects, "InferencePool"):
        if not item["apiVersion"].startswith(INFERENCE):
            yield f"{ref(item)}: {item['apiVersion']} is not served; expected {INFERENCE}v1"
        selector = item["spec"]["selector"]["matchLabels"]
        hit = [
            pod
            for pod in pods(objects)
            if namespace(pod.owner) == namespace(item) and matches(selector, pod.labels)
        ]
        if not hit:
            yield f"{ref(item)}: selector {selector} matches no pod"
        for pod in hit:
            for port in item["spec"]["targetPorts"]:
                if port["number"] not in pod.ports.values():
                    yield f"{ref(item)}: port {port['number']} is not a port of {pod.where}"


RULES = (_queries, _autoscalers, _shown_loads, _routes, _pools)
