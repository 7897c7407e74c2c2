"""The kinds of a training in the cluster: one row of `KINDS` and one file each."""

from __future__ import annotations

from collections.abc import Callable

from k8s.render.facts import Document
from k8s.render.training.facts import TrainingFacts
from k8s.render.training.job_set import job_set_objects
from k8s.render.training.search import search_objects
from k8s.render.training.train_job import train_job_objects

KINDS: dict[str, Callable[[TrainingFacts, Document], list[Document]]] = {
    "job": lambda _facts, job: [job],
    "search": search_objects,
    "job-set": job_set_objects,
    "train-job": train_job_objects,
}
"""Make the objects of a kind from the Job of the training."""
