"""The Job of a training: the base's, with the values of one run."""

from __future__ import annotations

import math
from pathlib import Path

import yaml

from k8s.render.facts import Document
from k8s.render.kustomize import MANIFESTS
from k8s.render.training.facts import TrainingFacts
from k8s.rules.objects import OF_GPUS, quantity
from k8s.training_config import DATA_MOUNT, TrainingResources
from tuneline.core.training_limits import MEASUREMENT_S, TRAINING_EXIT_MARGIN_S

FOLDER = MANIFESTS / "training"
GRACE = "tuneline/formula-grace-period"
OTHER_FILES_BYTES = 2 * 2**30


def training_job(facts: TrainingFacts) -> Document:
    """Return a Job that runs `tuneline train` on the run's own run.yaml."""
    config, training = facts.config, facts.training
    job = read(FOLDER / "job.yaml")
    job["metadata"] = facts.metadata(**facts.queue_labels)
    spec = job["spec"]
    spec["backoffLimit"] = training.retries
    spec["activeDeadlineSeconds"] = training.deadline_s
    spec["template"]["metadata"] = {
        "labels": dict(facts.labels),
        "annotations": {
            GRACE: f"{MEASUREMENT_S:g} s of a measurement + checkpoint_s "
            f"({training.checkpoint_s} s) + {TRAINING_EXIT_MARGIN_S} s to exit"
        },
    }
    pod = spec["template"]["spec"]
    pod["serviceAccountName"] = facts.name
    pod["terminationGracePeriodSeconds"] = training.grace_s
    _set_user(pod, config.run_as_user)
    _place(pod, facts)
    if config.image_pull_secrets:
        pod["imagePullSecrets"] = [{"name": name} for name in config.image_pull_secrets]
    (container,) = pod["containers"]
    container["image"] = training.image
    if training.push_to is not None:
        container["args"].append(f"--push-to={training.push_to}")
    _add_secrets(container, facts)
    _set_volumes(pod, container, facts)
    container["resources"] = _resources(training.resources, _disk(facts))
    if training.data_url is not None:
        pod["initContainers"] = [_copy_of_data(container, training.data_url, training.data_folder)]
    return job


def read(path: Path) -> Document:
    """Return the content of a manifest."""
    found: Document = yaml.safe_load(path.read_text(encoding="utf-8"))
    return found


def _set_user(pod: Document, number: int | None) -> None:
    for key in ("runAsUser", "runAsGroup", "fsGroup"):
        if number is None:
            pod["securityContext"].pop(key)
        else:
            pod["securityContext"][key] = number


def _place(pod: Document, facts: TrainingFacts) -> None:
    """Choose nodes, their runtime and the pods' priority, as the server's pods do."""
    wanted = facts.placement
    labels = dict(wanted.node_selector)
    if wanted.gpu_product is not None:
        labels["nvidia.com/gpu.product"] = wanted.gpu_product
    if labels:
        pod["nodeSelector"] = labels
    tolerations = [entry.model_dump(exclude_none=True) for entry in wanted.tolerations]
    if facts.training.resources.gpus is not None:
        gpu = {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}
        tolerations.insert(0, gpu)
    if tolerations:
        pod["tolerations"] = tolerations
    if wanted.priority_class is not None:
        pod["priorityClassName"] = wanted.priority_class
    if wanted.runtime_class is not None:
        pod["runtimeClassName"] = wanted.runtime_class


def _add_secrets(container: Document, facts: TrainingFacts) -> None:
    training = facts.training
    if training.hub_secret is not None:
        key = {"secretKeyRef": {"name": training.hub_secret, "key": "token"}}
        container["env"].append({"name": "HF_TOKEN", "valueFrom": key})
    if training.storage_secret is not None:
        container["envFrom"] = [{"secretRef": {"name": training.storage_secret}}]


def _set_volumes(pod: Document, container: Document, facts: TrainingFacts) -> None:
    training = facts.training
    folder = {"emptyDir": {"sizeLimit": training.resources.disk}}
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    volumes["config"]["configMap"]["name"] = facts.name
    volumes["tmp"] |= folder
    volumes["shm"]["emptyDir"]["sizeLimit"] = training.resources.shared_memory
    if training.work_claim is None:
        volumes["work"] = {"name": "work", **folder}
    else:
        volumes["work"]["persistentVolumeClaim"]["claimName"] = training.work_claim
    if training.data_url is not None:
        volumes["data"] = {"name": "data", **folder}
        mount = {"name": "data", "mountPath": DATA_MOUNT, "readOnly": True}
        container["volumeMounts"].append(mount)
    pod["volumes"] = list(volumes.values())


def _disk(facts: TrainingFacts) -> str:
    """Return the limit of the node's disk: the folders on it, logs and the image's layer."""
    training = facts.training
    number = 1 + (training.work_claim is None) + (training.data_url is not None)
    size_bytes = number * quantity(training.resources.disk) + OTHER_FILES_BYTES
    return f"{math.ceil(size_bytes / 2**20)}Mi"


def _resources(wanted: TrainingResources, disk: str) -> Document:
    asked = {"cpu": wanted.cpu, "memory": wanted.memory}
    if wanted.gpus is not None:
        asked[wanted.gpu_resource] = str(wanted.gpus)
    return {
        "requests": asked | {"ephemeral-storage": "1Gi"},
        "limits": asked | {"ephemeral-storage": disk},
    }


def _copy_of_data(container: Document, url: str, folder: str) -> Document:
    """Return the init container that copies the files which run.yaml names."""
    kept = ("image", "imagePullPolicy", "envFrom", "securityContext")
    told = ("HOME", "TUNELINE_POD_MESSAGE")
    return {
        "name": "copy-data",
        "command": ["tuneline", "pull"],
        "args": [url, f"--out={folder}", "--files"],
        **{key: container[key] for key in kept if key in container},
        "env": [entry for entry in container["env"] if entry["name"] in told],
        "resources": {
            part: {key: value for key, value in asked.items() if not key.startswith(OF_GPUS)}
            for part, asked in container["resources"].items()
        },
        "volumeMounts": [
            {"name": "data", "mountPath": DATA_MOUNT},
            {"name": "tmp", "mountPath": "/tmp"},  # noqa: S108 (a path in the container)
        ],
    }
