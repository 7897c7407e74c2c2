"""Adapters at run time: the list as a ConfigMap, and the Job that brings it to the server."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import yaml

from k8s.config import PORT
from k8s.render.components.table import wanted_components
from k8s.render.facts import Facts
from k8s.render.kustomize import INSTANCE_LABEL, MANIFESTS, common, plain_labels, write_yaml
from tuneline.core.artifact import canonical_digest
from tuneline.core.digests import short_digest

DESIRED = "desired.json"


def write_adapters(facts: Facts, tree: Path) -> None:
    """Add `adapters/` to a rendered tree.

    Another list is another Job, because the pods of a Job cannot change.
    """
    config = facts.config.adapters
    assert config is not None  # noqa: S101 (the caller looks)
    shutil.copytree(MANIFESTS / "adapters", tree / "k8s" / "adapters")
    job = yaml.safe_load((MANIFESTS / "adapters" / "job.yaml").read_text(encoding="utf-8"))
    job["metadata"]["name"] += f"-{short_digest(canonical_digest(facts.adapters))[:8]}"
    (container,) = job["spec"]["template"]["spec"]["containers"]
    container["image"] = facts.config.loadtest_image
    container["args"][0] = f"http://{facts.server}:{PORT}/v1"
    reference = {"name": config.secret_name, "key": "api-key"}
    container["env"][0] = {"name": "VLLM_API_KEY", "valueFrom": {"secretKeyRef": reference}}
    write_yaml(tree / "k8s" / "adapters" / "job.yaml", job)
    directory = tree / "adapters"
    directory.mkdir()
    text = json.dumps(facts.adapters, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
    (directory / DESIRED).write_text(text, encoding="utf-8")
    generated = {"name": "adapters", "behavior": "replace", "files": [DESIRED]}
    kustomization: dict[str, Any] = {
        **common(facts),
        "resources": ["../k8s/adapters"],
        "generatorOptions": {"disableNameSuffixHash": True},
        "configMapGenerator": [generated],
        "labels": [
            {"pairs": {INSTANCE_LABEL: facts.name}, "includeTemplates": True},
            plain_labels(facts, "adapters"),
        ],
    }
    patches = [
        patch for part in wanted_components(facts.config) for patch in part.loadtest_patches(facts)
    ]
    if patches:
        kustomization["patches"] = patches
    write_yaml(directory / "kustomization.yaml", kustomization)
