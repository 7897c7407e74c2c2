"""The reasons of pods that are not ready, from their status."""

from __future__ import annotations

from typing import Any

import pytest

from k8s.cluster.pods import Trouble, find_creation_trouble, find_trouble, is_ready


def pod(**status: Any) -> dict[str, Any]:
    return {"metadata": {"name": "p"}, "status": status}


def condition(kind: str, status: str, **more: str) -> dict[str, Any]:
    return {"type": kind, "status": status, **more}


def waiting(reason: str, message: str = "", **more: Any) -> dict[str, Any]:
    return {"name": "vllm", "state": {"waiting": {"reason": reason, "message": message}}, **more}


def test_a_pod_that_waits_for_its_queue_says_which() -> None:
    """Kueue's pod: the scheduler's message names neither the gate nor the queue."""
    words = "Scheduling is blocked due to non-empty scheduling gates"
    gated = pod(
        conditions=[condition("PodScheduled", "False", reason="SchedulingGated", message=words)]
    )
    gated["spec"] = {"schedulingGates": [{"name": "kueue.x-k8s.io/admission"}]}
    found = find_trouble(gated)
    assert found is not None and found.words == "held by kueue.x-k8s.io/admission"
    gated["metadata"]["labels"] = {"kueue.x-k8s.io/queue-name": "team"}
    found = find_trouble(gated)
    assert found is not None and found.words.startswith("the queue team has not admitted it")


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        ({}, None),
        ({"containerStatuses": [waiting("ContainerCreating")]}, None),
        ({"conditions": [condition("Ready", "True")]}, None),
        (
            {"conditions": [
                condition("PodScheduled", "False", reason="Unschedulable", message="0/3 nodes")
            ]},
            Trouble("p", "Unschedulable", "0/3 nodes"),
        ),
        (
            {"conditions": [condition("PodScheduled", "False", reason="SchedulingGated")]},
            Trouble("p", "SchedulingGated", ""),
        ),
        (
            {"containerStatuses": [waiting("ImagePullBackOff", "not found")]},
            Trouble("p", "ImagePullBackOff", "not found", "vllm"),
        ),
        (
            {"initContainerStatuses": [waiting("CreateContainerConfigError", "no secret x")]},
            Trouble("p", "CreateContainerConfigError", "no secret x", "vllm"),
        ),
        (
            {"containerStatuses": [
                waiting("CrashLoopBackOff", "back-off 5m0s",
                        lastState={"terminated": {"exitCode": 137, "reason": "OOMKilled"}})
            ]},
            Trouble("p", "CrashLoopBackOff", "exit code 137 (OOMKilled)", "vllm"),
        ),
        (
            {"containerStatuses": [
                {"name": "vllm", "state": {"terminated": {"exitCode": 2, "message": "no model"}}}
            ]},
            Trouble("p", "Terminated", "exit code 2: no model", "vllm"),
        ),
        (
            {"phase": "Failed", "reason": "Evicted", "message": "low on storage"},
            Trouble("p", "Failed", "Evicted low on storage"),
        ),
    ],
)  # fmt: skip
def test_the_reason_is_the_clusters_own(status: dict[str, Any], expected: Trouble | None) -> None:
    assert find_trouble(pod(**status)) == expected


def test_a_pod_that_ends_is_not_ready() -> None:
    found = pod(conditions=[condition("Ready", "True")])
    assert is_ready(found)
    found["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    assert not is_ready(found)


def test_a_quota_is_the_reason_of_a_deployment_without_pods() -> None:
    failure = condition("ReplicaFailure", "True", reason="FailedCreate", message="exceeded quota")
    item = {"kind": "ReplicaSet", "metadata": {"name": "r"}, "status": {"conditions": [failure]}}
    found = find_creation_trouble([{"kind": "Deployment", "metadata": {"name": "d"}}, item])
    assert found == Trouble("ReplicaSet/r", "FailedCreate", "exceeded quota")
    assert found.line() == "ReplicaSet/r: FailedCreate: exceeded quota"
