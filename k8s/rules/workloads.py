"""Rules on a server that is not a Deployment: a LeaderWorkerSet, an LLMInferenceService."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from k8s.rules.objects import (
    DIGEST_LABEL,
    LABEL_LENGTH,
    Object,
    flags,
    of_kind,
    pods,
    ref,
    selected,
)

RANKS = {"leader": "0", "worker": "$(LWS_WORKER_INDEX)"}
CHANGING = {DIGEST_LABEL, "app.kubernetes.io/version"}
"""Labels whose values another model changes."""
HASH_LENGTH = 11
"""A hyphen and the hash that a StatefulSet adds to its name in a label of its pods."""


def _hosts(objects: Sequence[Object]) -> Iterator[str]:
    """Leader and workers are one vLLM: with the same arguments except for their place."""
    for item in of_kind(objects, "LeaderWorkerSet"):
        size = item["spec"]["leaderWorkerTemplate"].get("size", 1)
        args = {pod.role: _args(pod.spec) for pod in pods(objects) if pod.owner is item}
        for role, found in args.items():
            if found.get("--nnodes") != [str(size)]:
                yield (
                    f"{ref(item)}: the {role} has --nnodes {found.get('--nnodes')}; expected "
                    f"{size}, the size of a group"
                )
            if found.get("--node-rank") != [RANKS[role]]:
                yield (
                    f"{ref(item)}: the {role} has --node-rank {found.get('--node-rank')}; "
                    f"expected {RANKS[role]}"
                )
            if found.get("--master-addr") != ["$(LWS_LEADER_ADDRESS)"]:
                yield f"{ref(item)}: the {role} needs --master-addr $(LWS_LEADER_ADDRESS)"
        if "--headless" in args["leader"] or "--headless" not in args["worker"]:
            yield f"{ref(item)}: expected --headless for the worker only, which has no API"
        place = {"--node-rank", "--headless"}
        ours, theirs = (
            {flag: value for flag, value in args[role].items() if flag not in place}
            for role in RANKS
        )
        if ours != theirs:
            different = sorted(
                flag for flag in {*ours, *theirs} if ours.get(flag) != theirs.get(flag)
            )
            yield f"{ref(item)}: leader and worker differ in {', '.join(different)}"


def _host_addresses(objects: Sequence[Object]) -> Iterator[str]:
    """The hosts find their leader by the headless Service that the controller makes."""
    services = {item["metadata"]["name"] for item in of_kind(objects, "Service")}
    for item in of_kind(objects, "LeaderWorkerSet"):
        policy = item["spec"].get("networkConfig", {}).get("subdomainPolicy", "Shared")
        if policy == "Shared" and item["metadata"]["name"] in services:
            yield (
                f"{ref(item)}: a Service has its name, so its controller makes no headless Service "
                "and no host finds the leader; expected subdomainPolicy UniquePerReplica"
            )


def _group_names(objects: Sequence[Object]) -> Iterator[str]:
    for item in of_kind(objects, "LeaderWorkerSet"):
        longest = f"{item['metadata']['name']}-{item['spec'].get('replicas', 1) - 1}"
        if len(longest) + HASH_LENGTH > LABEL_LENGTH:
            yield (
                f"{ref(item)}: the StatefulSet {longest} has {len(longest)} characters; expected "
                f"at most {LABEL_LENGTH - HASH_LENGTH}, so that its hash fits a label"
            )


def _leaders(objects: Sequence[Object]) -> Iterator[str]:
    """A worker answers no request."""
    for item in of_kind(objects, "Service"):
        for pod in selected(objects, item, item["spec"].get("selector", {})):
            if pod.role == "worker":
                yield f"{ref(item)}: selects the workers of {pod.where}; expected leaders only"
    for pod in pods(objects):
        if pod.role not in RANKS:
            continue
        policies = [
            item
            for item in of_kind(objects, "NetworkPolicy")
            if pod in selected(objects, item, item["spec"]["podSelector"].get("matchLabels", {}))
        ]
        if not any(_lets_the_group_in(item) for item in policies):
            yield f"{pod.where}: no NetworkPolicy lets the other hosts reach the {pod.role}"


def _lets_the_group_in(policy: Object) -> bool:
    own = policy["spec"]["podSelector"]
    return any(
        peer.get("podSelector") == own and any("endPort" in port for port in rule["ports"])
        for rule in policy["spec"].get("ingress", [])
        for peer in rule.get("from", [])
    )


def _kserve(objects: Sequence[Object]) -> Iterator[str]:
    for item in of_kind(objects, "LLMInferenceService"):
        containers = {entry["name"]: entry for entry in item["spec"]["template"]["containers"]}
        if "main" not in containers:
            yield (
                f"{ref(item)}: containers {sorted(containers)}; expected main, which KServe's "
                "presets merge with"
            )
        for container in containers.values():
            for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
                scheme = container.get(probe, {}).get("httpGet", {}).get("scheme")
                if scheme != "HTTP":
                    yield f"{ref(item)}: {probe} asks by {scheme}; expected HTTP"
            if container.get("lifecycle", {}).get("preStop", {}).keys() != {"exec"}:
                yield (
                    f"{ref(item)}: expected a preStop by exec, as KServe's presets have; next to "
                    "another handler, the API refuses the Deployment"
                )
        changing = sorted(CHANGING & item["spec"].get("labels", {}).keys())
        if changing:
            yield (
                f"{ref(item)}: the labels {', '.join(changing)} change with the model, and KServe "
                "puts them into the Deployment's selector, which cannot change"
            )
        if item["spec"].get("storageInitializer", {}).get("enabled") is not False:
            yield f"{ref(item)}: storageInitializer would copy a model that no rule verified"


def _args(spec: Mapping[str, Any]) -> dict[str, list[str]]:
    (container,) = spec["containers"]
    return flags(container.get("args", []))


RULES = (_hosts, _host_addresses, _group_names, _leaders, _kserve)
