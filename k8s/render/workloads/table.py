"""The workloads that a server can be: one row of `WORKLOADS` and one file each."""

from __future__ import annotations

from collections.abc import Callable

from k8s.config import DeployConfig
from k8s.render.facts import Document
from k8s.render.workloads.leader_worker_set import leader_worker_set
from k8s.render.workloads.llm_inference_service import llm_inference_service

WORKLOADS: dict[str, Callable[[list[Document], DeployConfig], list[Document]]] = {
    "leader-worker-set": leader_worker_set,
    "llm-inference-service": llm_inference_service,
}
"""Make the objects of a workload from those of the tree with a Deployment."""
