"""Reading rendered Kubernetes objects: pods wherever they are templated, selectors, arguments."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Object = Mapping[str, Any]

QUEUE_LABEL = "kueue.x-k8s.io/queue-name"
DIGEST_LABEL = "tuneline/model-digest"
SETTINGS = "TUNELINE_SETTINGS"
"""The variable with the middleware's settings as JSON."""
ADAPTERS = "TUNELINE_ADAPTERS"
RECORDING = "TUNELINE_RECORDING"
"""The variable with the settings of adapters at run time as JSON."""
KEY_VOLUME = "release-key"
"""The volume with the public key that a model's signature is checked with."""
# As in k8s.io/kubernetes/third_party/forked/golang/expansion.
_REFERENCE = re.compile(r"\$\$|\$\(([^)]*)\)")
OF_GPUS = "nvidia.com/"
"""The prefix of GPUs and of their slices among resources."""
LAST_APPLIED = "kubectl.kubernetes.io/last-applied-configuration"
LABEL_LENGTH = 63
"""Most characters of a label's value, and of a name that becomes one or a host name (RFC 1123)."""

_UNITS = {
    "": 1.0, "m": 1e-3, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12,
    "Ki": 2.0**10, "Mi": 2.0**20, "Gi": 2.0**30, "Ti": 2.0**40,
}  # fmt: skip


@dataclass(frozen=True)
class Pod:
    """The pod that a Deployment, a Job, a bare Pod or a custom resource brings."""

    where: str
    owner: Object
    labels: Mapping[str, str]
    spec: Mapping[str, Any]
    job: Mapping[str, Any] | None = None
    """The specification of the pod's Job, if a custom resource makes the Job."""
    group: Mapping[str, Any] = field(default_factory=dict)
    """The specification of the JobSet around it."""
    role: str = ""
    """The name of its Job in the JobSet, or `leader` and `worker`."""

    @property
    def containers(self) -> list[Mapping[str, Any]]:
        return [*self.spec.get("initContainers", []), *self.spec.get("containers", [])]

    @property
    def ports(self) -> dict[str, int]:
        return {
            port["name"]: port["containerPort"]
            for container in self.containers
            for port in container.get("ports", [])
            if "name" in port
        }


def pods(objects: Sequence[Object]) -> list[Pod]:
    found = []
    for item in objects:
        spec = item.get("spec", {})
        if item["kind"] in ("Deployment", "Job"):
            found.append(_templated(item, spec["template"]))
        elif item["kind"] == "AnalysisTemplate":
            for metric in spec["metrics"]:
                job = metric["provider"]["job"]["spec"]
                found.append(_templated(item, job["template"], job=job))
        elif item["kind"] == "Pod":
            found.append(Pod(ref(item), item, item["metadata"].get("labels", {}), spec))
        elif item["kind"] == "JobSet":
            found += _of_job_set(item, spec)
        elif item["kind"] == "TrainingRuntime":
            found += _of_job_set(item, spec["template"]["spec"])
        elif item["kind"] == "LeaderWorkerSet":
            group = spec["leaderWorkerTemplate"]
            found += [
                _templated(item, group[f"{role}Template"], role=role)
                for role in ("leader", "worker")
            ]
        elif item["kind"] == "LLMInferenceService":
            found.append(Pod(ref(item), item, spec.get("labels", {}), spec["template"]))
    return found


def _templated(item: Object, template: Mapping[str, Any], **facts: Any) -> Pod:
    labels = template.get("metadata", {}).get("labels", {})
    return Pod(ref(item), item, labels, template["spec"], **facts)


def _of_job_set(item: Object, spec: Mapping[str, Any]) -> list[Pod]:
    return [
        _templated(
            item, job["template"]["spec"]["template"],
            job=job["template"]["spec"], group=spec, role=job["name"],
        )
        for job in spec["replicatedJobs"]
    ]  # fmt: skip


def servers(objects: Sequence[Object]) -> list[tuple[Pod, Mapping[str, Any]]]:
    """Return the pods that run vLLM with its API, each with its vLLM container."""
    return [
        (pod, container)
        for pod in pods(objects)
        if pod.role != "worker"
        for container in pod.containers
        if container.get("command", [])[:2] == ["vllm", "serve"]
    ]


def flags(args: Sequence[str]) -> dict[str, list[str]]:
    """Return vLLM's arguments by flag: `--a b c --d=e` gives `{"--a": ["b", "c"], "--d": ["e"]}`.
    Arguments before the first flag have the empty name."""
    found: dict[str, list[str]] = {"": []}
    name = ""
    for arg in args:
        if arg.startswith("--"):
            name, equals, value = arg.partition("=")
            name = name.replace("_", "-")
            found.setdefault(name, []).extend([value] if equals else [])
        else:
            found[name].append(arg)
    return found


def ref(item: Mapping[str, Any]) -> str:
    """Return an object's kind and name."""
    return f"{item['kind']}/{item['metadata']['name']}"


def namespace(item: Object) -> str:
    return str(item["metadata"].get("namespace", ""))


def of_kind(objects: Sequence[Object], kind: str) -> list[Object]:
    return [item for item in objects if item["kind"] == kind]


def matches(selector: Mapping[str, str], labels: Mapping[str, str]) -> bool:
    return all(labels.get(key) == value for key, value in selector.items())


def selected(objects: Sequence[Object], item: Object, selector: Mapping[str, str]) -> list[Pod]:
    return [
        pod
        for pod in pods(objects)
        if namespace(pod.owner) == namespace(item) and matches(selector, pod.labels)
    ]


def env(container: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    return {entry["name"]: entry for entry in container.get("env", [])}


def literal(text: str) -> str:
    """Return a text for `command`, `args` or `env` that the kubelet gives to the process as `text`.

    The kubelet reads `$(NAME)` as a variable and `$$` as `$`.
    """
    return re.sub(r"\$(?=[$(])", "$$", text)


def expanded(text: str, values: Mapping[str, str]) -> str:
    """Return a text of `command`, `args` or `env` as the kubelet gives it to the process.

    A reference to a variable that is not in `values` stays.
    """
    return _REFERENCE.sub(
        lambda found: "$" if found[1] is None else values.get(found[1], found[0]), text
    )


def references(text: str) -> list[str]:
    """Return the names of the variables that the kubelet looks up for a text."""
    return [found[1] for found in _REFERENCE.finditer(text) if found[1] is not None]


def quantity(text: str | int | float) -> float:
    match = re.fullmatch(r"([0-9.]+)([a-zA-Z]*)", str(text))
    if match is None or match[2] not in _UNITS:
        return float("nan")
    return float(match[1]) * _UNITS[match[2]]


def escaped_size(text: str) -> int:
    """Return the bytes of a text inside a JSON string as Go writes it, without the quotes.

    Go's encoder (encoding/json, HTMLEscape) writes <, > and & and two line separators as six bytes.
    """
    escaped = json.dumps(text, ensure_ascii=False)[1:-1]
    return len(escaped.encode()) + _escapes(escaped)


def applied_size(item: Object) -> int:
    """Return the bytes of an object's annotations after `kubectl apply`, with its copy of it."""
    copied = json.dumps(item, ensure_ascii=False, separators=(",", ":"))
    own = item["metadata"].get("annotations", {})
    return (
        len(LAST_APPLIED)
        + len(copied.encode())
        + _escapes(copied)
        + 1
        + sum(len(str(key).encode()) + len(str(value).encode()) for key, value in own.items())
    )


def _escapes(text: str) -> int:
    return 5 * sum(map(text.count, "<>&")) + 3 * sum(map(text.count, "\u2028\u2029"))


def num_gpus(limits: Mapping[str, Any]) -> int:
    """Return the GPUs, or slices of one, of a container."""
    return sum(int(number) for name, number in limits.items() if name.startswith(OF_GPUS))
