"""Write kustomizations, and have kubectl build them."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from k8s.config import DeployConfig
from k8s.rules.objects import DIGEST_LABEL, Object
from tuneline.core.errors import ConfigError

MANIFESTS = Path(__file__).parents[1] / "manifests"
INSTANCE_LABEL = "app.kubernetes.io/instance"


def build(directory: Path) -> list[Object] | None:
    """Return the objects that `kubectl apply -k` would send; None without kubectl and kustomize.

    Raises:
        ConfigError: The directory is not a kustomization that builds.
    """
    if tool := find_kubectl():
        command = [tool, "kustomize", str(directory)]
    elif tool := shutil.which("kustomize"):
        command = [tool, "build", str(directory)]
    else:
        return None
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    if done.returncode != 0:
        raise ConfigError(f"{directory}: {done.stderr.strip()}")
    return [item for item in yaml.safe_load_all(done.stdout) if item]


def find_kubectl() -> str | None:
    """Return the user's kubectl, or the one that pip installed next to the interpreter."""
    return shutil.which("kubectl") or shutil.which("kubectl", path=Path(sys.executable).parent)


def common(config: DeployConfig, name: str, model_digest: str) -> dict[str, Any]:
    """Return the fields that all kustomizations of one run have."""
    return {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "namespace": config.namespace,
        "namePrefix": f"{name}-",
        "commonAnnotations": {DIGEST_LABEL: model_digest},
    }


def key_from_secret(config: DeployConfig) -> dict[str, Any]:
    """Return the entry of the API key in `env`, for the server and the load test."""
    reference = {"name": config.secret_name, "key": "api-key"}
    return {"name": "VLLM_API_KEY", "valueFrom": {"secretKeyRef": reference}}


def write_yaml(path: Path, content: Mapping[str, Any]) -> None:
    """Write YAML with the keys in the order given, so that equal content gives equal bytes."""
    text = yaml.safe_dump(dict(content), sort_keys=False, allow_unicode=True, width=100)
    path.write_text(text, encoding="utf-8")
