"""A training over several hosts as a TrainJob of Kubeflow Trainer 2."""

from __future__ import annotations

from k8s.render.facts import Document
from k8s.render.training.facts import NODE, TrainingFacts
from k8s.render.training.job_set import job_set_spec

API = "trainer.kubeflow.org/v1alpha1"
STEP = "trainer.kubeflow.org/trainjob-ancestor-step"


def train_job_objects(facts: TrainingFacts, job: Document) -> list[Document]:
    """Return a TrainJob and the TrainingRuntime that it names.

    The runtime holds the whole pod. The TrainJob gives the number of hosts: the Trainer writes it
    into the JobSet that it makes, whose name is the TrainJob's.
    """
    spec = job_set_spec(facts, job)
    (replicated,) = spec["replicatedJobs"]
    template = replicated["template"]
    template["metadata"]["labels"][STEP] = "trainer"
    (container,) = template["spec"]["template"]["spec"]["containers"]
    container["name"] = NODE
    for rule in template["spec"]["podFailurePolicy"]["rules"]:
        if "onExitCodes" in rule:
            rule["onExitCodes"]["containerName"] = NODE
    hosts = facts.training.hosts
    # The Trainer sets the time after which a finished JobSet is removed.
    spec.pop("ttlSecondsAfterFinished")
    return [
        {
            "apiVersion": API,
            "kind": "TrainingRuntime",
            "metadata": facts.metadata(),
            "spec": {"mlPolicy": {"numNodes": hosts}, "template": {"spec": spec}},
        },
        {
            "apiVersion": API,
            "kind": "TrainJob",
            "metadata": facts.metadata(**facts.queue_labels),
            "spec": {
                "runtimeRef": {
                    "apiGroup": "trainer.kubeflow.org",
                    "kind": "TrainingRuntime",
                    "name": facts.name,
                },
                "trainer": {"numNodes": hosts},
            },
        },
    ]
