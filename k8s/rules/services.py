"""Rules on what selects pods: names, Deployments, Services, budgets, network policies, monitors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from k8s.rules.objects import (
    DIGEST_LABEL,
    Object,
    Pod,
    matches,
    namespace,
    of_kind,
    pods,
    ref,
    selected,
    servers,
)


def _names(objects: Sequence[Object]) -> Iterator[str]:
    seen = set()
    for item in objects:
        key = (ref(item), namespace(item))
        if key in seen:
            yield f"{key[0]}: is defined twice"
        seen.add(key)


def _selectors(objects: Sequence[Object]) -> Iterator[str]:
    for item in of_kind(objects, "Deployment"):
        selector = item["spec"]["selector"].get("matchLabels", {})
        labels = item["spec"]["template"].get("metadata", {}).get("labels", {})
        if not selector or not matches(selector, labels):
            yield f"{ref(item)}: selector {selector} does not match its pods' labels {labels}"
        if DIGEST_LABEL in selector:
            yield f"{ref(item)}: a selector cannot change, so it must not hold {DIGEST_LABEL}"


def _services(objects: Sequence[Object]) -> Iterator[str]:
    for item in of_kind(objects, "Service"):
        hit = selected(objects, item, item["spec"].get("selector", {}))
        if not item["spec"].get("selector") or not hit:
            yield f"{ref(item)}: selector {item['spec'].get('selector')} matches no pod"
        for port in item["spec"]["ports"]:
            if "appProtocol" not in port:
                yield f"{ref(item)}: port {port['port']} has no appProtocol; a mesh would guess"
            target = port.get("targetPort", port["port"])
            for pod in hit:
                if target not in pod.ports and target not in pod.ports.values():
                    yield f"{ref(item)}: target port {target!r} is not a port of {pod.where}"


def _disruption_budgets(objects: Sequence[Object]) -> Iterator[str]:
    for item in of_kind(objects, "PodDisruptionBudget"):
        spec = item["spec"]
        hit = selected(objects, item, spec.get("selector", {}).get("matchLabels", {}))
        if not hit:
            yield f"{ref(item)}: selector matches no pod"
        if spec.get("unhealthyPodEvictionPolicy") != "AlwaysAllow":
            yield (
                f"{ref(item)}: unhealthyPodEvictionPolicy must be AlwaysAllow; pods that are not "
                "ready would hold up a drain"
            )
        for pod in hit:
            replicas = pod.owner["spec"].get("replicas", 1)
            blocked = spec.get("maxUnavailable") in (0, "0%")
            blocked |= spec.get("minAvailable") == "100%"
            minimum = spec.get("minAvailable")
            blocked |= isinstance(minimum, int) and minimum >= replicas
            if blocked:
                yield (
                    f"{ref(item)}: leaves none of the {replicas} replica(s) of {pod.where} to "
                    "be evicted; no node could be drained"
                )


def _network_policies(objects: Sequence[Object]) -> Iterator[str]:
    for item in of_kind(objects, "NetworkPolicy"):
        spec = item["spec"]
        hit = selected(objects, item, spec["podSelector"].get("matchLabels", {}))
        if not hit:
            yield f"{ref(item)}: selector matches no pod"
        if set(spec.get("policyTypes", [])) != {"Ingress", "Egress"}:
            yield f"{ref(item)}: policyTypes must name Ingress and Egress; one left out is open"
        for rule in spec.get("ingress", []):
            if not rule.get("from") or not rule.get("ports"):
                yield f"{ref(item)}: an ingress rule without `from` or `ports` lets all in"
            for port in rule.get("ports", []):
                # The workers of a model over several hosts have no API.
                is_known = any(_has(pod, port["port"]) for pod in hit)
                if hit and "endPort" not in port and not is_known:
                    yield f"{ref(item)}: port {port['port']!r} is not a port of {hit[0].where}"


def _has(pod: Pod, port: str | int) -> bool:
    return port in pod.ports or port in pod.ports.values()


def _isolation(objects: Sequence[Object]) -> Iterator[str]:
    serving = {pod.where for pod, _ in servers(objects)}
    for pod in pods(objects):
        own = [
            item
            for item in of_kind(objects, "NetworkPolicy")
            if pod in selected(objects, item, item["spec"]["podSelector"].get("matchLabels", {}))
        ]
        if not own:
            yield f"{pod.where}: no NetworkPolicy covers it"
        # The load test's pods and other clients live in the same namespace.
        local = any(
            peer.get("podSelector") == {} and "namespaceSelector" not in peer
            for item in own
            for rule in item["spec"].get("ingress", [])
            for peer in rule.get("from", [])
        )
        if own and not local and pod.where in serving:
            yield f"{pod.where}: no NetworkPolicy lets pods of its own namespace in"


def _service_monitors(objects: Sequence[Object]) -> Iterator[str]:
    for item in of_kind(objects, "ServiceMonitor"):
        selector = item["spec"]["selector"].get("matchLabels", {})
        services = [
            service
            for service in of_kind(objects, "Service")
            if namespace(service) == namespace(item)
            and matches(selector, service["metadata"].get("labels", {}))
        ]
        if not selector or not services:
            yield f"{ref(item)}: selector {selector} matches no Service"
        for service in services:
            names = [port.get("name") for port in service["spec"]["ports"]]
            for endpoint in item["spec"]["endpoints"]:
                if endpoint.get("port") not in names:
                    yield (
                        f"{ref(item)}: port {endpoint.get('port')!r} is not a port of "
                        f"{ref(service)}: {names}"
                    )


RULES = (
    _names,
    _selectors,
    _services,
    _disruption_budgets,
    _network_policies,
    _isolation,
    _service_monitors,
)
