"""Rules on every pod: its images, secrets, volumes, resources and security settings."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from k8s.rules.objects import (
    KEY_VOLUME,
    Object,
    env,
    flags,
    namespace,
    of_kind,
    pods,
    quantity,
    ref,
    references,
)
from k8s.value_types import image_problem
from tuneline.core.secrets import is_secret_name

KEYS_FILE = "TUNELINE_KEYS_FILE"
# The volume types that the Pod Security Standard `restricted` allows.
_VOLUME_TYPES = {
    "configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "image", "persistentVolumeClaim",
    "projected", "secret",
}  # fmt: skip


def _references(objects: Sequence[Object]) -> Iterator[str]:
    """Objects that the manifests bring themselves; Secrets, claims and the key come from
    elsewhere."""
    known = {(ref(item), namespace(item)) for item in objects}
    for pod in pods(objects):
        wanted = []
        if "serviceAccountName" in pod.spec:
            wanted.append(f"ServiceAccount/{pod.spec['serviceAccountName']}")
        for volume in pod.spec.get("volumes", []):
            if "configMap" in volume and volume["name"] != KEY_VOLUME:
                wanted.append(f"ConfigMap/{volume['configMap'].get('name')}")
        for reference in wanted:
            if (reference, namespace(pod.owner)) not in known:
                yield f"{pod.where}: {reference} is not in the manifests"


def _variables(objects: Sequence[Object]) -> Iterator[str]:
    """The kubelet leaves a `$(NAME)` that it does not know as it is."""
    for pod in pods(objects):
        for container in pod.containers:
            known: set[str] = set()
            texts = []
            for name, entry in env(container).items():
                texts.append((entry.get("value", ""), frozenset(known)))
                known.add(name)
            words = [*container.get("command", []), *container.get("args", [])]
            texts += [(word, frozenset(known)) for word in words]
            for text, names in texts:
                for name in references(text):
                    # The controller of a LeaderWorkerSet adds its own.
                    if name not in names and not name.startswith("LWS_"):
                        yield (
                            f"{pod.where}: {text!r} refers to the variable {name}, which is not "
                            "set before; `$$(` is a plain `$(`"
                        )


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
        yield f"{ref(item)}: a Secret is created by hand, never written to a manifest"
    for pod in pods(objects):
        for container in pod.containers:
            for name, entry in env(container).items():
                if len(entry.keys() & {"value", "valueFrom"}) != 1:
                    yield f"{pod.where}: {name} needs exactly one of value and valueFrom"
                if is_secret_name(name) and "secretKeyRef" not in entry.get("valueFrom", {}):
                    yield f"{pod.where}: {name} must come from a Secret by secretKeyRef"
            if problem := _keys_problem(pod.spec, container):
                yield f"{pod.where}: {problem}"
            for flag in ("--api-key", "--hf-token"):
                if flag in flags([*container.get("command", []), *container.get("args", [])]):
                    yield f"{pod.where}: {flag} shows a key to everybody who may read the pod"


def _keys_problem(spec: Object, container: Object) -> str | None:
    """Return why the named keys do not come from a Secret."""
    path = env(container).get(KEYS_FILE, {}).get("value")
    if path is None:
        return None
    secrets = {volume["name"] for volume in spec.get("volumes", []) if "secret" in volume}
    folders = {
        mount["mountPath"]
        for mount in container.get("volumeMounts", [])
        if mount["name"] in secrets
    }
    if path.rpartition("/")[0] in folders:
        return None
    return f"{KEYS_FILE} is {path}; expected a file of a mounted Secret"


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
        # Without a number, the cluster gives one: OpenShift refuses any other.
        if shared.get("runAsNonRoot") is not True or shared.get("runAsUser") == 0:
            yield f"{pod.where}: must run as a user other than root"
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
                if {"subPath", "subPathExpr"} & set(mount):
                    yield (
                        f"{pod.where}: volume {mount['name']!r} is mounted by subPath; the kubelet "
                        "creates a missing folder, empty and owned by root"
                    )


def _resources(objects: Sequence[Object]) -> Iterator[str]:
    for pod in pods(objects):
        for container in pod.containers:
            asked = container.get("resources", {})
            if not {"cpu", "memory"} <= set(asked.get("requests", {})):
                yield f"{pod.where}: container {container['name']} requests no cpu or no memory"
            for resource in ("memory", "ephemeral-storage"):
                if resource not in asked.get("limits", {}):
                    yield f"{pod.where}: container {container['name']} has no {resource} limit"
            for resource, limit in asked.get("limits", {}).items():
                request = asked.get("requests", {}).get(resource, 0)
                if quantity(request) > quantity(limit):
                    yield (
                        f"{pod.where}: container {container['name']} requests {request} of "
                        f"{resource}; its limit is {limit}"
                    )


def _disk(objects: Sequence[Object]) -> Iterator[str]:
    """The kubelet evicts a pod whose emptyDirs and layers are above its containers' limits."""
    for pod in pods(objects):
        needed = 0.0
        for volume in pod.spec.get("volumes", []):
            folder = volume.get("emptyDir")
            if folder is None:
                continue
            if "sizeLimit" not in folder:
                yield f"{pod.where}: volume {volume['name']} has no sizeLimit"
            elif folder.get("medium") != "Memory":
                needed += quantity(folder["sizeLimit"])
        limits = [
            quantity(container.get("resources", {}).get("limits", {}).get("ephemeral-storage", 0))
            for container in pod.spec.get("containers", [])
        ]
        if sum(limits) < needed:
            yield (
                f"{pod.where}: the limit of ephemeral-storage is {sum(limits) / 2**30:g} GiB; its "
                f"emptyDirs may hold {needed / 2**30:g} GiB"
            )


def _accounts(objects: Sequence[Object]) -> Iterator[str]:
    for pod in pods(objects):
        if pod.spec.get("serviceAccountName", "default") == "default":
            yield f"{pod.where}: runs as `default`; expected a ServiceAccount of its own"


RULES = (
    _references, _variables, _images, _secrets, _security, _volumes, _resources, _disk, _accounts,
)  # fmt: skip
