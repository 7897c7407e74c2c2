"""The training in the cluster: a part of the section `k8s`. No machine-learning imports."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field, model_validator

from k8s.placement_config import Placement
from k8s.value_types import GPU, DnsLabel, GpuResource, Image, Port, Quantity, slices_problem
from tuneline.core.config import StrictModel
from tuneline.core.training_limits import MEASUREMENT_S, TRAINING_EXIT_MARGIN_S

DATA_MOUNT = "/data"


class TrainingResources(StrictModel):
    """The resources of one pod of a training, requested and limit."""

    cpu: Quantity = "4"
    memory: Quantity = "16Gi"
    gpus: int | None = Field(default=None, ge=1)
    """GPUs of one pod; without them the training runs on the CPU."""
    gpu_resource: GpuResource = GPU
    """As in `k8s.resources`."""
    shared_memory: Quantity = "2Gi"
    """`/dev/shm`, a part of `memory`."""
    disk: Quantity = "10Gi"
    """Of each folder on the node's disk: `/tmp`, and `/work` and `/data` if they are not on a
    claim."""


class TrainingJob(StrictModel):
    """A training as a Job, a search as an Indexed Job, or a training over several hosts."""

    image: Image
    """The image of `k8s/images/Dockerfile.training`."""
    kind: Literal["job", "search", "job-set", "train-job"] = "job"
    """`job`: batch/v1 Job. `search`: Indexed Job of `tuneline search`. `job-set`: JobSet.
    `train-job`: TrainJob of Kubeflow Trainer 2 with a TrainingRuntime of its own."""
    work_claim: DnsLabel | None = None
    """The PersistentVolumeClaim with the folder `data`, which holds the files that run.yaml names,
    and `runs`, which gets artifacts and checkpoints. Another node continues from there. Several
    pods need ReadWriteMany."""
    data_url: str | None = Field(default=None, pattern=r"^(s3|gs|az|abfss)://\S+/\S+$")
    """Object storage with the files that run.yaml names, below the same relative paths; an init
    container copies them. In place of the folder `data` of `work_claim`."""
    push_to: str | None = Field(default=None, pattern=r"^(s3|gs|az|abfss)://\S+/\S+$")
    """Object storage that gets each artifact as soon as it is whole, e.g. `s3://models/runs`."""
    storage_secret: DnsLabel | None = None
    """A Secret whose keys become environment variables of the pods, e.g. AWS_ACCESS_KEY_ID,
    AWS_SECRET_ACCESS_KEY, AWS_ENDPOINT_URL and AWS_REGION."""
    hub_secret: DnsLabel | None = None
    """A Secret whose key `token` may read the base model and a teacher on the Hugging Face Hub."""
    ports: tuple[Port, ...] = (443,)
    """The ports of the Hub and of object storage, which the NetworkPolicy opens."""
    workers: int = Field(default=1, ge=1, le=256)
    """Pods of a search, which share one study on `work_claim`."""
    hosts: int = Field(default=1, ge=1, le=100)
    """Pods of one training, with `kind: job-set` or `train-job`."""
    resources: TrainingResources = TrainingResources()
    placement: Placement | None = None
    """The nodes of the training; `k8s.placement` if not given."""
    checkpoint_s: int = Field(default=90, ge=1)
    """Seconds of the longest optimizer step and the writing of its checkpoint, as the log of a
    training says on SIGTERM. The grace period is 10 s for a measurement of held-out rows, this, and
    20 s to exit."""
    retries: int = Field(default=3, ge=0)
    """Starts after an accident, such as a crash or a lost connection. A drained node does not
    count."""
    deadline_s: int = Field(default=604_800, ge=60)
    """Seconds after which the training is ended."""

    @property
    def grace_s(self) -> int:
        """Return the grace period of a pod: the time from SIGTERM until its checkpoint is whole."""
        return math.ceil(MEASUREMENT_S) + self.checkpoint_s + TRAINING_EXIT_MARGIN_S

    @property
    def data_folder(self) -> str:
        """Return the folder in the pods that is the folder of run.yaml here."""
        return "/work/data" if self.data_url is None else f"{DATA_MOUNT}/files"

    @model_validator(mode="after")
    def _consistent(self) -> TrainingJob:
        problems = []
        if problem := slices_problem(self.resources.gpu_resource, self.resources.gpus):
            problems.append(f"resources.{problem}")
        if self.work_claim is None and self.push_to is None:
            problems.append(
                "neither work_claim nor push_to is given, so the artifacts would be lost with the "
                "pod; give one of them"
            )
        if self.work_claim is None and self.data_url is None:
            problems.append("give work_claim or data_url: the place of the files in run.yaml")
        if self.kind == "search" and self.work_claim is None:
            problems.append("kind: search keeps its study on work_claim; give work_claim")
        if self.workers > 1 and self.kind != "search":
            problems.append("workers goes with kind: search")
        if self.hosts > 1 and self.kind not in ("job-set", "train-job"):
            problems.append("hosts above 1 goes with kind: job-set or train-job")
        if self.hosts > 1 and self.work_claim is None:
            problems.append("hosts above 1 needs work_claim (ReadWriteMany), which all pods mount")
        if self.kind == "search" and self.push_to is not None:
            problems.append(
                "push_to has no meaning for a search: its best run.yaml is trained anew"
            )
        if problems:
            raise ValueError("; ".join(problems))
        return self
