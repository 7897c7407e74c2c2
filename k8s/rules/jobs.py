"""Rules on Jobs: a load test of a server that is rendered with it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from k8s.rules.adapters import appliers
from k8s.rules.objects import (
    LABEL_LENGTH,
    Object,
    Pod,
    env,
    flags,
    namespace,
    of_kind,
    pods,
    servers,
)
from k8s.rules.training import trainings

MESSAGE = "TUNELINE_POD_MESSAGE"
EXIT_CODES = range(1, 9)
"""All that `tuneline` ends with: see tuneline/core/errors.py."""


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
    others = {pod.where for pod, _ in [*trainings(objects), *appliers(objects)]}
    for pod in pods(objects):
        if pod.owner["kind"] not in ("Job", "AnalysisTemplate") or pod.where in others:
            continue
        spec = _spec(pod)
        if spec.get("backoffLimit") != 0 or pod.spec.get("restartPolicy") != "Never":
            yield f"{pod.where}: a verdict is not tried again: backoffLimit 0, restartPolicy Never"
        for key in ("activeDeadlineSeconds", "ttlSecondsAfterFinished"):
            if key not in spec:
                yield f"{pod.where}: {key} is not set"
        yield from _failures(pod)
        if spec.get("completionMode") == "Indexed":
            if spec.get("completions") != spec.get("parallelism"):
                yield (
                    f"{pod.where}: parallelism {spec.get('parallelism')} differs from completions "
                    f"{spec.get('completions')}; the load pods begin together"
                )
            longest = f"{pod.owner['metadata']['name']}-{spec.get('completions', 1) - 1}"
            if len(longest) > LABEL_LENGTH:
                yield (
                    f"{pod.where}: {longest} has {len(longest)} characters; a pod's may have "
                    f"{LABEL_LENGTH}"
                )
        for container in pod.containers:
            if MESSAGE not in env(container):
                yield (
                    f"{pod.where}: {MESSAGE} is not set; lines of stderr would appear inside the "
                    "report, and the pod would not name its verdict"
                )
            args = flags(container.get("args", []))
            for url in args.get("--url", []):
                if urls.get(url) != namespace(pod.owner):
                    yield (
                        f"{pod.where}: {url} is not a Service of these manifests; expected one of "
                        f"{sorted(urls)}"
                    )
            # The judge of a canary asks another run's server by that run's name.
            asked = args.get("--model-b") or args.get("--model", [])
            for name in asked:
                if name not in names:
                    yield f"{pod.where}: model {name!r} is not served; served are {sorted(names)}"


def _spec(pod: Pod) -> Mapping[str, Any]:
    """Return the specification of a pod's Job."""
    found: Mapping[str, Any] = pod.owner["spec"] if pod.job is None else pod.job
    return found


def _failures(pod: Pod) -> Iterator[str]:
    """One pod of a drained node is tried again; every exit code of a verdict or mistake is named.

    Several load pods begin together: one that is tried again finds the others under way.
    """
    rules = _spec(pod).get("podFailurePolicy", {}).get("rules", [])
    drained = "FailJob" if _spec(pod).get("completions", 1) > 1 else "Ignore"
    found = [
        condition["type"]
        for rule in rules
        if rule["action"] == drained
        for condition in rule.get("onPodConditions", [])
    ]
    if "DisruptionTarget" not in found:
        yield (
            f"{pod.where}: podFailurePolicy must {drained} on DisruptionTarget, the drain of a node"
        )
    names = [container["name"] for container in pod.containers]
    codes = set()
    for rule in rules:
        ends = rule.get("onExitCodes", {})
        if rule["action"] == "FailJob" and ends.get("operator") == "In":
            codes |= set(ends["values"])
        if ends and ends.get("containerName", names[0]) not in names:
            yield f"{pod.where}: podFailurePolicy names {ends['containerName']}; it has {names}"
    if missing := sorted(set(EXIT_CODES) - codes):
        yield f"{pod.where}: podFailurePolicy does not name the exit codes {missing}"


RULES = (_jobs,)
