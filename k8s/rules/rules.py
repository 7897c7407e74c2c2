"""What makes a set of manifests wrong although every schema accepts it.

Each rule is a generator over the rendered objects that yields one sentence per problem. Schemas see
one object and its types; these rules see that a selector meets no pod, that a budget blocks every
node drain, that a key stands in the open. Those on the vLLM container are in `server_rules.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from k8s.config import image_problem
from k8s.rules import server as server_rules
from k8s.rules.objects import (
    DIGEST_LABEL,
    Object,
    env,
    flags,
    matches,
    namespace,
    of_kind,
    pods,
    selected,
    servers,
    where,
)
from tuneline.core.secrets import is_secret_name

# The volume types that the Pod Security Standard `restricted` allows.
_VOLUME_TYPES = {
    "configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "image", "persistentVolumeClaim",
    "projected", "secret",
}  # fmt: skip


def _names(objects: Sequence[Object]) -> Iterator[str]:
    seen = set()
    for item in objects:
        key = (where(item), namespace(item))
        if key in seen:
            yield f"{key[0]}: stands twice"
        seen.add(key)


def _selectors(objects: Sequence[Object]) -> Iterator[str]:
    for item in of_kind(objects, "Deployment"):
        selector = item["spec"]["selector"].get("matchLabels", {})
        labels = item["spec"]["template"].get("metadata", {}).get("labels", {})
        if not selector or not matches(selector, labels):
            yield f"{where(item)}: selector {selector} does not match its pods' labels {labels}"
        if DIGEST_LABEL in selector:
            yield f"{where(item)}: a selector cannot change, so it must not hold {DIGEST_LABEL}"


def _services(objects: Sequence[Object]) -> Iterator[str]:
    for item in of_kind(objects, "Service"):
        hit = selected(objects, item, item["spec"].get("selector", {}))
        if not item["spec"].get("selector") or not hit:
            yield f"{where(item)}: selector {item['spec'].get('selector')} meets no pod"
        for port in item["spec"]["ports"]:
            target = port.get("targetPort", port["port"])
            for pod in hit:
                if target not in pod.ports and target not in pod.ports.values():
                    yield f"{where(item)}: target port {target!r} is no port of {pod.where}"


def _disruption_budgets(objects: Sequence[Object]) -> Iterator[str]:
    for item in of_kind(objects, "PodDisruptionBudget"):
        spec = item["spec"]
        hit = selected(objects, item, spec.get("selector", {}).get("matchLabels", {}))
        if not hit:
            yield f"{where(item)}: selector meets no pod"
        for pod in hit:
            replicas = pod.owner["spec"].get("replicas", 1)
            blocked = spec.get("maxUnavailable") in (0, "0%")
            blocked |= spec.get("minAvailable") == "100%"
            minimum = spec.get("minAvailable")
            blocked |= isinstance(minimum, int) and minimum >= replicas
            if blocked:
                yield (
                    f"{where(item)}: leaves none of the {replicas} replica(s) of {pod.where} to "
                    "be evicted; no node could be drained"
                )


def _network_policies(objects: Sequence[Object]) -> Iterator[str]:
    for item in of_kind(objects, "NetworkPolicy"):
        spec = item["spec"]
        hit = selected(objects, item, spec["podSelector"].get("matchLabels", {}))
        if not hit:
            yield f"{where(item)}: selector meets no pod"
        if set(spec.get("policyTypes", [])) != {"Ingress", "Egress"}:
            yield f"{where(item)}: policyTypes must name Ingress and Egress; one left out is open"
        for rule in spec.get("ingress", []):
            if not rule.get("from") or not rule.get("ports"):
                yield f"{where(item)}: an ingress rule without `from` or `ports` lets all in"
            for port in rule.get("ports", []):
                for pod in hit:
                    if port["port"] not in pod.ports and port["port"] not in pod.ports.values():
                        yield f"{where(item)}: port {port['port']!r} is no port of {pod.where}"


def _isolation(objects: Sequence[Object]) -> Iterator[str]:
    policies = of_kind(objects, "NetworkPolicy")
    for pod, _ in servers(objects):
        own = [
            item
            for item in policies
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
        if own and not local:
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
            yield f"{where(item)}: selector {selector} meets no Service"
        for service in services:
            names = [port.get("name") for port in service["spec"]["ports"]]
            for endpoint in item["spec"]["endpoints"]:
                if endpoint.get("port") not in names:
                    yield (
                        f"{where(item)}: port {endpoint.get('port')!r} is none of "
                        f"{where(service)}: {names}"
                    )


def _references(objects: Sequence[Object]) -> Iterator[str]:
    """Objects that the manifests bring themselves; Secrets and claims come from elsewhere."""
    known = {(where(item), namespace(item)) for item in objects}
    for pod in pods(objects):
        wanted = []
        if "serviceAccountName" in pod.spec:
            wanted.append(f"ServiceAccount/{pod.spec['serviceAccountName']}")
        for volume in pod.spec.get("volumes", []):
            if "configMap" in volume:
                wanted.append(f"ConfigMap/{volume['configMap'].get('name')}")
        for reference in wanted:
            if (reference, namespace(pod.owner)) not in known:
                yield f"{pod.where}: {reference} is not among the manifests"


def _images(objects: Sequence[Object]) -> Iterator[str]:
    for pod in pods(objects):
        references = [container.get("image", "") for container in pod.containers]
        references += [
            volume["image"].get("reference", "")
            for volume in pod.spec.get("volumes", [])
            if "image" in volume
        ]
        for reference in references:
            if problem := image_problem(reference):
                yield f"{pod.where}: image {problem}"


def _secrets(objects: Sequence[Object]) -> Iterator[str]:
    for item in of_kind(objects, "Secret"):
        yield f"{where(item)}: a Secret is created by hand, never written to a manifest"
    for pod in pods(objects):
        for container in pod.containers:
            for name, entry in env(container).items():
                if len(entry.keys() & {"value", "valueFrom"}) != 1:
                    yield f"{pod.where}: {name} needs exactly one of value and valueFrom"
                if is_secret_name(name) and "secretKeyRef" not in entry.get("valueFrom", {}):
                    yield f"{pod.where}: {name} must come from a Secret by secretKeyRef"
            for flag in ("--api-key", "--hf-token"):
                if flag in flags([*container.get("command", []), *container.get("args", [])]):
                    yield f"{pod.where}: {flag} shows a key to everybody who may read the pod"


def _security(objects: Sequence[Object]) -> Iterator[str]:
    """The Pod Security Standard `restricted`, and a read-only root file system."""
    for pod in pods(objects):
        spec = pod.spec
        for key in ("hostNetwork", "hostPID", "hostIPC"):
            if spec.get(key):
                yield f"{pod.where}: {key} is not allowed"
        if spec.get("automountServiceAccountToken") is not False:
            yield f"{pod.where}: automountServiceAccountToken must be false"
        if spec.get("enableServiceLinks") is not False:
            yield f"{pod.where}: enableServiceLinks must be false"
        shared = spec.get("securityContext", {})
        if shared.get("seccompProfile", {}).get("type") != "RuntimeDefault":
            yield f"{pod.where}: seccompProfile must be RuntimeDefault"
        if shared.get("runAsNonRoot") is not True or shared.get("runAsUser") in (None, 0):
            yield f"{pod.where}: must run as a user other than root, named by number"
        for container in pod.containers:
            own = container.get("securityContext", {})
            name = f"{pod.where}: container {container['name']}"
            if own.get("allowPrivilegeEscalation") is not False:
                yield f"{name}: allowPrivilegeEscalation must be false"
            if own.get("privileged"):
                yield f"{name}: must not be privileged"
            if own.get("capabilities", {}).get("drop") != ["ALL"]:
                yield f"{name}: must drop ALL capabilities"
            if own.get("capabilities", {}).get("add"):
                yield f"{name}: must add no capability"
            if own.get("readOnlyRootFilesystem") is not True:
                yield f"{name}: readOnlyRootFilesystem must be true"
            if own.get("runAsNonRoot") is False or own.get("runAsUser") == 0:
                yield f"{name}: must not run as root"
            if own.get("seccompProfile", {}).get("type", "RuntimeDefault") != "RuntimeDefault":
                yield f"{name}: seccompProfile must be RuntimeDefault"


def _volumes(objects: Sequence[Object]) -> Iterator[str]:
    for pod in pods(objects):
        volumes = {volume["name"]: volume for volume in pod.spec.get("volumes", [])}
        for name, volume in volumes.items():
            types = set(volume) - {"name"}
            if len(types) != 1 or not types <= _VOLUME_TYPES:
                yield f"{pod.where}: volume {name}: {sorted(types)} is not one allowed type"
        for container in pod.containers:
            for mount in container.get("volumeMounts", []):
                if mount["name"] not in volumes:
                    yield f"{pod.where}: volume {mount['name']!r} is mounted but not declared"


def _resources(objects: Sequence[Object]) -> Iterator[str]:
    for pod in pods(objects):
        for container in pod.containers:
            asked = container.get("resources", {})
            if not {"cpu", "memory"} <= set(asked.get("requests", {})):
                yield f"{pod.where}: container {container['name']} requests no cpu or no memory"
            if "memory" not in asked.get("limits", {}):
                yield f"{pod.where}: container {container['name']} has no memory limit"


def _jobs(objects: Sequence[Object]) -> Iterator[str]:
    urls = {
        f"http://{service['metadata']['name']}:{port['port']}/v1": namespace(service)
        for service in of_kind(objects, "Service")
        for port in service["spec"]["ports"]
    }
    names = {
        name
        for _, container in servers(objects)
        for name in flags(container.get("args", [])).get("--served-model-name", [])
    }
    for pod in pods(objects):
        if pod.owner["kind"] != "Job":
            continue
        spec = pod.owner["spec"]
        if spec.get("backoffLimit") != 0 or pod.spec.get("restartPolicy") != "Never":
            yield f"{pod.where}: a verdict is not tried again: backoffLimit 0, restartPolicy Never"
        for key in ("activeDeadlineSeconds", "ttlSecondsAfterFinished"):
            if key not in spec:
                yield f"{pod.where}: {key} is not set"
        for container in pod.containers:
            args = flags(container.get("args", []))
            for url in args.get("--url", []):
                if urls.get(url) != namespace(pod.owner):
                    yield f"{pod.where}: {url} is no Service here; expected one of {sorted(urls)}"
            for name in args.get("--model", []):
                if name not in names:
                    yield f"{pod.where}: model {name!r} is not served; served are {sorted(names)}"


RULES = (
    _names, _selectors, _services, _disruption_budgets, _network_policies, _isolation,
    _service_monitors, _references, _images, _secrets, _security, _volumes, _resources, _jobs,
    *server_rules.RULES,
)  # fmt: skip


def problems(objects: Sequence[Object]) -> list[str]:
    """Everything wrong with what `kubectl kustomize` printed; empty if nothing is.

    Args:
        objects: All that is applied together: the server's objects and the load test's.
    """
    return [problem for rule in RULES for problem in rule(objects)]
