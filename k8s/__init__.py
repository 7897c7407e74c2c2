"""Manifests for Kubernetes: a kustomize base with overlays and components, rendered for a run.

`render_manifests` fills them in and checks the result; it asks no cluster. `plan_apply`,
`apply_manifests`, `roll_back_server`, `shift_route` and `read_state` ask one, through kubectl.
"""

from typing import TYPE_CHECKING

from tuneline.core.lazy import lazy_face

if TYPE_CHECKING:
    from k8s.capacity import read_capacity
    from k8s.cluster.apply import Plan, apply_manifests, plan_apply
    from k8s.cluster.canary import (
        find_stable,
        read_share,
        require_names,
        set_weight,
        shift_route,
    )
    from k8s.cluster.check import check_run, open_tunnel, read_server_key
    from k8s.cluster.judge import run_judge
    from k8s.cluster.kubectl import Cluster, open_cluster
    from k8s.cluster.manifests import Manifests, read_manifests
    from k8s.cluster.roll_back import find_earlier, roll_back_server
    from k8s.cluster.status import read_state
    from k8s.render.facts import Facts
    from k8s.render.job import LoadTestJob
    from k8s.render.kustomize import find_kubectl
    from k8s.render.training.tree import render_training
    from k8s.render.tree import render_manifests

__all__ = [
    "Cluster",
    "Facts",
    "LoadTestJob",
    "Manifests",
    "Plan",
    "apply_manifests",
    "check_run",
    "find_earlier",
    "find_kubectl",
    "find_stable",
    "open_cluster",
    "open_tunnel",
    "plan_apply",
    "read_capacity",
    "read_manifests",
    "read_server_key",
    "read_share",
    "read_state",
    "render_manifests",
    "render_training",
    "require_names",
    "roll_back_server",
    "run_judge",
    "set_weight",
    "shift_route",
]

__getattr__ = lazy_face(
    __name__,
    {
        "Cluster": "k8s.cluster.kubectl:Cluster",
        "Facts": "k8s.render.facts:Facts",
        "LoadTestJob": "k8s.render.job:LoadTestJob",
        "Manifests": "k8s.cluster.manifests:Manifests",
        "Plan": "k8s.cluster.apply:Plan",
        "apply_manifests": "k8s.cluster.apply:apply_manifests",
        "check_run": "k8s.cluster.check:check_run",
        "find_earlier": "k8s.cluster.roll_back:find_earlier",
        "find_kubectl": "k8s.render.kustomize:find_kubectl",
        "find_stable": "k8s.cluster.canary:find_stable",
        "open_cluster": "k8s.cluster.kubectl:open_cluster",
        "open_tunnel": "k8s.cluster.check:open_tunnel",
        "plan_apply": "k8s.cluster.apply:plan_apply",
        "read_capacity": "k8s.capacity:read_capacity",
        "read_manifests": "k8s.cluster.manifests:read_manifests",
        "read_server_key": "k8s.cluster.check:read_server_key",
        "read_share": "k8s.cluster.canary:read_share",
        "read_state": "k8s.cluster.status:read_state",
        "render_manifests": "k8s.render.tree:render_manifests",
        "render_training": "k8s.render.training.tree:render_training",
        "require_names": "k8s.cluster.canary:require_names",
        "roll_back_server": "k8s.cluster.roll_back:roll_back_server",
        "run_judge": "k8s.cluster.judge:run_judge",
        "set_weight": "k8s.cluster.canary:set_weight",
        "shift_route": "k8s.cluster.canary:shift_route",
    },
)
