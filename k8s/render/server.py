"""The server of a run: its kustomization, and the patch of the base's Deployment."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from k8s.config import MODEL_DIR, DeployConfig
from k8s.render.components import wanted_components
from k8s.render.kustomize import (
    INSTANCE_LABEL,
    MANIFESTS,
    common,
    key_from_secret,
    write_yaml,
)
from k8s.rules.objects import DIGEST_LABEL, flags
from k8s.rules.server import PATIENCE
from tuneline.core.digests import short_digest
from tuneline.core.vllm_limits import EXIT_MARGIN_S

# The startup probe waits this much longer than vLLM itself, whose clock starts after its imports.
STARTUP_MARGIN_S = 60
# For scheduling a pod and pulling its image.
SCHEDULING_S = 300


def write_server(
    config: DeployConfig,
    name: str,
    model_digest: str,
    served_args: Sequence[str],
    served_env: Mapping[str, str],
    tree: Path,
) -> None:
    """Write the server's kustomization, its patch, and copies of the manifests that they use."""
    components = wanted_components(config)
    folders = [f"components/{part.folder}" for part in components if part.folder is not None]
    for part in ["base", f"overlays/{config.overlay}", *folders]:
        shutil.copytree(MANIFESTS / part, tree / "k8s" / part)
    kustomization: dict[str, Any] = {
        **common(config, name, model_digest),
        "resources": [f"k8s/overlays/{config.overlay}"],
        "labels": [
            {
                "pairs": {INSTANCE_LABEL: name},
                "includeSelectors": True,
                "fields": [
                    {"path": "spec/selector/matchLabels", "kind": "ServiceMonitor", "create": True}
                ],
            },
            # Not in selectors: they cannot change, and every model has another digest.
            {"pairs": {DIGEST_LABEL: short_digest(model_digest)}, "includeTemplates": True},
        ],
        "patches": [
            {"path": "server.yaml"},
            *(patch for part in components for patch in part.patches(config)),
        ],
    }
    if folders:
        kustomization["components"] = [f"k8s/{folder}" for folder in folders]
    write_yaml(tree / "kustomization.yaml", kustomization)
    deployment = yaml.safe_load(
        (MANIFESTS / "base" / "deployment.yaml").read_text(encoding="utf-8")
    )
    patch = _server_patch(config, name, model_digest, served_args, served_env, deployment)
    write_yaml(tree / "server.yaml", patch)


def _server_patch(
    config: DeployConfig,
    name: str,
    model_digest: str,
    served_args: Sequence[str],
    served_env: Mapping[str, str],
    deployment: Mapping[str, Any],
) -> dict[str, Any]:
    """A strategic-merge patch: lists of named things merge by name, `args` are replaced."""
    (base,) = deployment["spec"]["template"]["spec"]["containers"]
    startup_s = int(served_env.get(PATIENCE, _value(base, PATIENCE))) + STARTUP_MARGIN_S
    period_s = base["startupProbe"]["periodSeconds"]
    drain_s = int((flags(served_args).get("--shutdown-timeout") or ["0"])[-1])
    grace_s = base["lifecycle"]["preStop"]["sleep"]["seconds"] + drain_s + EXIT_MARGIN_S
    container: dict[str, Any] = {
        "name": base["name"],
        "image": config.image,
        "args": list(served_args),
        "env": [
            *({"name": key, "value": served_env[key]} for key in sorted(served_env)),
            key_from_secret(config),
        ],
        "startupProbe": {"failureThreshold": -(-startup_s // period_s)},
    }
    if resources := _resources(config):
        container["resources"] = resources
    pod: dict[str, Any] = {
        "terminationGracePeriodSeconds": grace_s,
        "containers": [container],
    }
    if config.model_claim is not None:
        folder = config.model_path or f"{name}-{short_digest(model_digest)}"
        container["volumeMounts"] = [{"mountPath": MODEL_DIR, "name": "model", "subPath": folder}]
        claim = {"claimName": config.model_claim}
        pod["volumes"] = [{"name": "model", "persistentVolumeClaim": claim}]
    else:
        pod["volumes"] = [{"name": "model", "image": {"reference": config.model_image}}]
    return {
        "apiVersion": deployment["apiVersion"],
        "kind": deployment["kind"],
        "metadata": {"name": deployment["metadata"]["name"]},
        "spec": {
            "replicas": config.replicas,
            "progressDeadlineSeconds": startup_s + grace_s + SCHEDULING_S,
            "template": {"spec": pod},
        },
    }


def _value(container: Mapping[str, Any], name: str) -> str:
    (entry,) = (entry for entry in container["env"] if entry["name"] == name)
    return str(entry["value"])


def _resources(config: DeployConfig) -> dict[str, Any]:
    wanted = config.resources
    requests: dict[str, str] = {}
    limits: dict[str, str] = {}
    if wanted.cpu is not None:
        requests["cpu"] = wanted.cpu
        if config.overlay == "cpu":
            limits["cpu"] = wanted.cpu
    if wanted.memory is not None:
        requests["memory"] = limits["memory"] = wanted.memory
    if wanted.gpus is not None:
        requests["nvidia.com/gpu"] = limits["nvidia.com/gpu"] = str(wanted.gpus)
    return {key: value for key, value in (("requests", requests), ("limits", limits)) if value}
