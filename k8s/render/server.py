"""The server of a run: its kustomization, and the patch of the base's Deployment."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from k8s.config import MODEL_DIR, DeployConfig
from k8s.render.components.table import wanted_components
from k8s.render.facts import Facts, Files, Fill
from k8s.render.kustomize import (
    INSTANCE_LABEL,
    LOADER,
    MANIFESTS,
    common,
    key_from_secret,
    plain_labels,
    write_yaml,
)
from k8s.rules.objects import flags, literal, quantity
from k8s.rules.server import PATIENCE
from k8s.value_types import GPU
from tuneline.core.vllm_limits import VLLM_EXIT_MARGIN_S

# The startup probe waits this much longer than vLLM itself, whose clock starts after its imports.
STARTUP_MARGIN_S = 60
# Assumptions for a rollout's deadline, low on purpose: a link of 200 Mbit/s, and a network disk.
COPY_BYTES_PER_S = 25_000_000
VERIFY_BYTES_PER_S = 100_000_000


def write_server(
    facts: Facts, served_args: Sequence[str], served_env: Mapping[str, str], tree: Path
) -> None:
    """Write the server's kustomization, its patch, and copies of the manifests that they use."""
    config = facts.config
    components = wanted_components(config)
    for part in ["base", f"overlays/{config.overlay}"]:
        shutil.copytree(MANIFESTS / part, tree / "k8s" / part)
    folders = [part.folder for part in components if part.folder is not None]
    for component in components:
        if component.folder is not None:
            _write_component(component.folder, component.fill, facts, tree)
    kustomization: dict[str, Any] = {
        **common(facts),
        "resources": [f"k8s/overlays/{config.overlay}"],
        "labels": [
            {
                "pairs": {INSTANCE_LABEL: facts.name},
                "includeSelectors": True,
                "fields": [
                    {"path": "spec/selector/matchLabels", "kind": "ServiceMonitor", "create": True}
                ],
            },
            plain_labels(facts, "model-server"),
        ],
        "patches": [
            {"path": "server.yaml"},
            *(patch for part in components for patch in part.patches(facts)),
        ],
    }
    if folders:
        kustomization["components"] = [f"k8s/components/{folder}" for folder in folders]
    write_yaml(tree / "kustomization.yaml", kustomization)
    deployment = yaml.safe_load(
        (MANIFESTS / "base" / "deployment.yaml").read_text(encoding="utf-8")
    )
    write_yaml(tree / "server.yaml", _server_patch(facts, served_args, served_env, deployment))


def _write_component(folder: str, fill: Fill, facts: Facts, tree: Path) -> None:
    """Copy a component's folder into the tree, with the run's values in its files."""
    source = MANIFESTS / "components" / folder
    target = tree / "k8s" / "components" / folder
    target.mkdir(parents=True)
    paths = sorted(path for path in source.iterdir() if path.name != "kustomization.yaml")
    files: Files = {path.name: _read(path) for path in paths}
    fill(files, facts)
    for name, document in files.items():
        if name.endswith(".json"):
            text = json.dumps(document, indent=1, ensure_ascii=False) + "\n"
            (target / name).write_text(text, encoding="utf-8")
        else:
            write_yaml(target / name, document)
    shutil.copyfile(source / "kustomization.yaml", target / "kustomization.yaml")


def _read(path: Path) -> dict[str, Any]:
    text = path.read_text(encoding="utf-8")
    found: dict[str, Any]
    found = json.loads(text) if path.suffix == ".json" else yaml.load(text, Loader=LOADER)  # noqa: S506 (a SafeLoader)
    return found


def _server_patch(
    facts: Facts,
    served_args: Sequence[str],
    served_env: Mapping[str, str],
    deployment: Mapping[str, Any],
) -> dict[str, Any]:
    """Return a strategic-merge patch: named things merge by name, `args` are replaced."""
    config = facts.config
    (base,) = deployment["spec"]["template"]["spec"]["containers"]
    startup_s = int(served_env.get(PATIENCE, _value(base, PATIENCE))) + STARTUP_MARGIN_S
    period_s = base["startupProbe"]["periodSeconds"]
    drain_s = int((flags(served_args).get("--shutdown-timeout") or ["0"])[-1])
    grace_s = base["lifecycle"]["preStop"]["sleep"]["seconds"] + drain_s + VLLM_EXIT_MARGIN_S
    container: dict[str, Any] = {
        "name": base["name"],
        "image": config.image,
        "args": [literal(facts.model_path if arg == MODEL_DIR else arg) for arg in served_args],
        "env": [
            *({"name": key, "value": literal(served_env[key])} for key in sorted(served_env)),
            key_from_secret(config),
        ],
        "startupProbe": {"failureThreshold": -(-startup_s // period_s)},
    }
    if resources := _resources(config, _overlay_cpu(config)):
        container["resources"] = resources
    pod: dict[str, Any] = {
        "terminationGracePeriodSeconds": grace_s,
        "containers": [container],
    }
    if config.model_claim is not None:
        claim = {"claimName": config.model_claim}
        pod["volumes"] = [{"name": "model", "persistentVolumeClaim": claim}]
    spec: dict[str, Any] = {
        "progressDeadlineSeconds": startup_s + grace_s + config.scheduling_s + _inits_s(facts),
        "template": {"spec": pod},
    }
    if config.autoscaling is None:
        spec["replicas"] = config.replicas
    if config.surge:
        spec["strategy"] = {"rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}}
    return {
        "apiVersion": deployment["apiVersion"],
        "kind": deployment["kind"],
        "metadata": {"name": deployment["metadata"]["name"]},
        "spec": spec,
    }


def _inits_s(facts: Facts) -> int:
    """Return the seconds that the init containers may take to copy and verify the model."""
    config, size_bytes = facts.config, facts.model_size_bytes
    copies = config.model_hub is not None or config.model_fetch is not None
    seconds = size_bytes / COPY_BYTES_PER_S if copies else 0.0
    if config.verify_model:
        # The signature is compared in a second reading.
        readings = 1 if config.release_key is None else 2
        seconds += readings * size_bytes / VERIFY_BYTES_PER_S
    return math.ceil(seconds)


def _value(container: Mapping[str, Any], name: str) -> str:
    (entry,) = (entry for entry in container["env"] if entry["name"] == name)
    return str(entry["value"])


def _overlay_cpu(config: DeployConfig) -> str:
    """Return the cores that the overlay requests."""
    path = MANIFESTS / "overlays" / config.overlay / "server.yaml"
    (container,) = _read(path)["spec"]["template"]["spec"]["containers"]
    return str(container["resources"]["requests"]["cpu"])


def _resources(config: DeployConfig, overlay_cpu: str) -> dict[str, Any]:
    wanted = config.resources
    # A patch removes a key with null.
    requests: dict[str, str | None] = {}
    limits: dict[str, str | None] = {}
    if wanted.cpu is not None:
        requests["cpu"] = wanted.cpu
        if config.overlay == "cpu":
            limits["cpu"] = wanted.cpu
    if wanted.cpu_limit is not None:
        limits["cpu"] = wanted.cpu_limit
        if wanted.cpu is None and quantity(wanted.cpu_limit) < quantity(overlay_cpu):
            requests["cpu"] = wanted.cpu_limit
    if wanted.memory is not None:
        requests["memory"] = limits["memory"] = wanted.memory
    if wanted.ephemeral_storage is not None:
        limits["ephemeral-storage"] = wanted.ephemeral_storage
    if wanted.gpu_resource != GPU:
        requests[GPU] = limits[GPU] = None
        requests[wanted.gpu_resource] = limits[wanted.gpu_resource] = "1"
    elif wanted.gpus is not None:
        requests[GPU] = limits[GPU] = str(wanted.gpus)
    return {key: value for key, value in (("requests", requests), ("limits", limits)) if value}
