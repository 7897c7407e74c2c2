"""A training over several hosts as a JobSet."""

from __future__ import annotations

from typing import Any

from k8s.render.facts import Document
from k8s.render.training.facts import MASTER_PORT, NODE, TrainingFacts

INDEX = "metadata.annotations['batch.kubernetes.io/job-completion-index']"
MISTAKES = (2, 3, 6, 7, 8)


def job_set_objects(facts: TrainingFacts, job: Document) -> list[Document]:
    """Return a JobSet whose pods find one another by the names of its headless Service."""
    return [
        {
            "apiVersion": "jobset.x-k8s.io/v1alpha2",
            "kind": "JobSet",
            "metadata": facts.metadata(**facts.queue_labels),
            "spec": job_set_spec(facts, job),
        }
    ]


def job_set_spec(facts: TrainingFacts, job: Document) -> Document:
    """Return the specification of a JobSet with one pod for each host.

    A pod that fails leaves the others in a collective that never ends. So its Job fails at once,
    and the JobSet starts all pods again: without limit after a drained node, `retries` times after
    an accident, and never after a mistake.
    """
    spec = dict(job["spec"])
    template = spec["template"]
    (container,) = template["spec"]["containers"]
    container["env"] += _process_group(facts)
    container["ports"] = [{"name": "master", "containerPort": MASTER_PORT}]
    hosts = facts.training.hosts
    spec |= {
        "completionMode": "Indexed",
        "completions": hosts,
        "parallelism": hosts,
        "backoffLimit": 0,
        "podFailurePolicy": {"rules": _failed_at_once(container["name"])},
    }
    keep_s = spec.pop("ttlSecondsAfterFinished")
    return {
        "ttlSecondsAfterFinished": keep_s,
        "network": {"enableDNSHostnames": True, "subdomain": facts.name},
        "failurePolicy": {
            "maxRestarts": facts.training.retries,
            "rules": [
                {
                    "name": "drained",
                    "action": "RestartJobSetAndIgnoreMaxRestarts",
                    "onJobFailureReasons": ["PodFailurePolicy"],
                    "onJobFailureMessagePatterns": [".*has condition DisruptionTarget.*"],
                },
                {
                    "name": "mistake",
                    "action": "FailJobSet",
                    "onJobFailureReasons": ["PodFailurePolicy"],
                },
            ],
        },
        "replicatedJobs": [
            {
                "name": NODE,
                "replicas": 1,
                "template": {"metadata": {"labels": dict(facts.labels)}, "spec": spec},
            }
        ],
    }


def _process_group(facts: TrainingFacts) -> list[dict[str, Any]]:
    """Return the environment variables by which `training.launch` finds the other hosts.

    RANK and WORLD_SIZE count hosts, each of which starts the processes of `training.launch`.
    """
    index = {"fieldRef": {"fieldPath": INDEX}}
    return [
        # The pod of index 0, by its name in the JobSet's headless Service.
        {"name": "MASTER_ADDR", "value": f"{facts.name}-{NODE}-0-0.{facts.name}"},
        {"name": "MASTER_PORT", "value": str(MASTER_PORT)},
        {"name": "WORLD_SIZE", "value": str(facts.training.hosts)},
        {"name": "RANK", "valueFrom": index},
        {"name": "NODE_RANK", "valueFrom": index},
    ]


def _failed_at_once(container: str) -> list[dict[str, Any]]:
    drained = {"type": "DisruptionTarget", "status": "True"}
    codes = {"containerName": container, "operator": "In", "values": list(MISTAKES)}
    return [
        {"action": "FailJob", "onPodConditions": [drained]},
        {"action": "FailJob", "onExitCodes": codes},
    ]
