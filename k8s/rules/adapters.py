"""Rules on adapters at run time: the server that takes them, and the Job that brings them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from k8s.rules.objects import ADAPTERS, Object, Pod, env, flags, namespace, of_kind, pods, servers
from k8s.rules.pods import KEYS_FILE

APPLY = ["tuneline", "adapters", "apply"]
NO_SERVER = 5
"""The exit code of `tuneline` for a server that does not answer, such as one that still loads."""


def appliers(objects: Sequence[Object]) -> list[tuple[Pod, Mapping[str, Any]]]:
    """Return the pods that bring adapters to a server, each with its container."""
    return [
        (pod, container)
        for pod in pods(objects)
        for container in pod.containers
        if container.get("command") == APPLY
    ]


def _settings(container: Mapping[str, Any]) -> Any:
    return json.loads(env(container).get(ADAPTERS, {}).get("value") or "null")


def _takers(objects: Sequence[Object]) -> Iterator[str]:
    """A server keeps its adapters on a claim that no second server of the run uses."""
    for pod, container in servers(objects):
        settings = _settings(container)
        if settings is None:
            continue
        claims = {
            volume["name"]
            for volume in pod.spec.get("volumes", [])
            if "persistentVolumeClaim" in volume
        }
        folders = [
            mount["mountPath"]
            for mount in container.get("volumeMounts", [])
            if mount["name"] in claims and not mount.get("readOnly")
        ]
        for key in ("root", "state_dir"):
            path = settings[key]
            if not any(path == folder or path.startswith(f"{folder}/") for folder in folders):
                yield f"{pod.where}: {key} {path} is not on a claim; a new pod would lose it"
        args = container.get("args", [])
        if settings["base_dir"] != args[0]:
            yield f"{pod.where}: adapters fit {settings['base_dir']}; the server serves {args[0]}"
        if "--enable-lora" not in flags(args):
            yield f"{pod.where}: takes adapters without --enable-lora"
        if KEYS_FILE not in env(container):
            yield f"{pod.where}: {KEYS_FILE} is not set; nobody has an admin key"
        spec = pod.owner["spec"]
        surge = spec.get("strategy", {}).get("rollingUpdate", {}).get("maxSurge", 1)
        if (spec.get("replicas"), surge) != (1, 0):
            yield (
                f"{pod.where}: adapters are those of one pod; expected replicas 1 and maxSurge 0, "
                f"not {spec.get('replicas')} and {surge}"
            )


def _bringers(objects: Sequence[Object]) -> Iterator[str]:
    """The Job asks the server of these manifests, for adapters that it may take."""
    takers = [_settings(container) for _, container in servers(objects)]
    urls = {
        f"http://{service['metadata']['name']}:{port['port']}/v1"
        for service in of_kind(objects, "Service")
        for port in service["spec"]["ports"]
    }
    for pod, container in appliers(objects):
        url, file = flags(container["args"])[""]
        if url not in urls:
            yield f"{pod.where}: {url} is not a Service of these manifests; expected {sorted(urls)}"
        codes = {
            code
            for rule in pod.owner["spec"].get("podFailurePolicy", {}).get("rules", [])
            for code in rule.get("onExitCodes", {}).get("values", [])
        }
        if NO_SERVER in codes or not pod.owner["spec"].get("backoffLimit"):
            yield f"{pod.where}: a server that still loads must be asked again (exit code 5)"
        if not {3, 6, 7} <= codes:
            yield f"{pod.where}: a refused adapter is not tried again (exit codes 3, 6 and 7)"
        for settings in takers:
            if settings is None:
                yield f"{pod.where}: the server takes no adapters; {ADAPTERS} is not set"
                continue
            desired = _desired(objects, pod, file)
            if len(desired) > settings["max_adapters"]:
                yield (
                    f"{pod.where}: wants {len(desired)} adapters; serving.adapters.max_adapters is "
                    f"{settings['max_adapters']}"
                )
            for name, entry in desired.items():
                if name in settings["reserved_names"]:
                    yield f"{pod.where}: {name} is a name of the server's own model"
                for key in ("adapter", "reference"):
                    if not entry[key].startswith(f"{settings['root']}/"):
                        yield f"{pod.where}: {entry[key]} is not below {settings['root']}"


def _desired(objects: Sequence[Object], pod: Pod, file: str) -> Any:
    """Return the list in the ConfigMap that a pod mounts."""
    names = [volume.get("configMap", {}).get("name") for volume in pod.spec.get("volumes", [])]
    for item in of_kind(objects, "ConfigMap"):
        if item["metadata"]["name"] in names and namespace(item) == namespace(pod.owner):
            return json.loads(item["data"][file.rpartition("/")[2]])
    return {}


RULES = (_takers, _bringers)
