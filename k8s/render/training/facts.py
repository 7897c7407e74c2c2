"""The facts that the kinds of a training may know about the run."""

from __future__ import annotations

from dataclasses import dataclass

from k8s.config import DeployConfig
from k8s.placement_config import Placement
from k8s.render.facts import Document
from k8s.render.kustomize import INSTANCE_LABEL
from k8s.rules.objects import QUEUE_LABEL
from k8s.training_config import TrainingJob

MASTER_PORT = 29500
NODE = "node"
"""The name of the pods' job in a JobSet, which Kubeflow's Trainer expects."""


@dataclass(frozen=True)
class TrainingFacts:
    """One run and the training that its section `k8s` asks for."""

    config: DeployConfig
    training: TrainingJob
    run: str

    @property
    def name(self) -> str:
        """Return the name of all objects."""
        return f"{self.run}-{'search' if self.training.kind == 'search' else 'train'}"

    @property
    def placement(self) -> Placement:
        return self.training.placement or self.config.placement

    @property
    def labels(self) -> dict[str, str]:
        """Return the labels of every object and pod."""
        return {
            "app.kubernetes.io/name": "train",
            "app.kubernetes.io/component": "training",
            "app.kubernetes.io/part-of": "tuneline",
            "app.kubernetes.io/managed-by": "tuneline",
            INSTANCE_LABEL: self.name,
        }

    @property
    def queue_labels(self) -> dict[str, str]:
        """Return the label by which Kueue admits a workload."""
        queue = self.config.queue_name
        return {} if queue is None else {QUEUE_LABEL: queue}

    def metadata(self, **labels: str) -> Document:
        """Return the metadata of an object."""
        return {
            "name": self.name,
            "namespace": self.config.namespace,
            "labels": self.labels | labels,
        }
