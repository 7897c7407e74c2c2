"""Manifests for Kubernetes: a kustomize base with overlays and components, rendered for a run.

`render_manifests` fills them in and checks the result; nothing here asks a cluster.
"""

from typing import TYPE_CHECKING

from tuneline.core.lazy import lazy_face

if TYPE_CHECKING:
    from k8s.capacity import read_capacity
    from k8s.render.kustomize import find_kubectl
    from k8s.render.training.tree import render_training
    from k8s.render.tree import render_manifests
    from k8s.rules.check import check_manifests

__all__ = [
    "check_manifests", "find_kubectl", "read_capacity", "render_manifests", "render_training",
]  # fmt: skip

__getattr__ = lazy_face(
    __name__,
    {
        "check_manifests": "k8s.rules.check:check_manifests",
        "find_kubectl": "k8s.render.kustomize:find_kubectl",
        "read_capacity": "k8s.capacity:read_capacity",
        "render_manifests": "k8s.render.tree:render_manifests",
        "render_training": "k8s.render.training.tree:render_training",
    },
)
