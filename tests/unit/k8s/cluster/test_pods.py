"""The reasons of pods that are not ready, from their status."""

from __future__ import annotations

from typing import Any

import pytest

from k8s.cluster.pods import (
    Trouble,
    find_creation_trouble,
    find_event_trouble,
    find_trouble,
    is_ready,
    slow_words,
)


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
            {"initContainerStatuses": [
                waiting("CrashLoopBackOff", "back-off 10s",
                        lastState={"terminated": {"exitCode": 3, "message": "not signed by KEY"}})
            ], "containerStatuses": [waiting("PodInitializing")]},
            Trouble("p", "CrashLoopBackOff", "exit code 3: not signed by KEY", "vllm"),
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


def event(reason: str, minute: int, name: str = "p") -> dict[str, Any]:
    time = f"2026-01-01T00:{minute:02}:00Z"
    message = f"{reason} at {minute}"
    about = {"name": name}
    return {"involvedObject": about, "reason": reason, "message": message, "lastTimestamp": time}


@pytest.mark.parametrize(
    ("reason", "events", "words"),
    [
        ("ContainerCreating", [("FailedMount", 2), ("Scheduled", 1)], "FailedMount at 2"),
        ("PodInitializing", [("FailedAttachVolume", 3)], "FailedAttachVolume at 3"),
        ("ContainerCreating", [("FailedCreatePodSandBox", 3)], "FailedCreatePodSandBox at 3"),
        # The volume is there by now, and the image is pulled.
        ("ContainerCreating", [("FailedMount", 2), ("Pulling", 3)], None),
        ("ContainerCreating", [("FailedScheduling", 2)], None),
        ("ContainerCreating", [], None),
        ("", [("FailedMount", 2)], None),
    ],
)
def test_a_pod_before_its_start_has_the_words_of_its_last_event(
    reason: str, events: list[tuple[str, int]], words: str | None
) -> None:
    state = pod(containerStatuses=[waiting(reason)])
    others = event("FailedMount", 9, name="other")
    found = find_event_trouble(state, [others, *(event(*one) for one in events)])
    assert (None if found is None else found.words) == words


RUNNING = {"name": "vllm", "state": {"running": {}}, "ready": False}


@pytest.mark.parametrize(
    ("status", "words", "container"),
    [
        ({}, "waits for the scheduler or the kubelet", None),
        ({"containerStatuses": [waiting("ContainerCreating")]}, "its image is being pulled", None),
        (
            {"initContainerStatuses": [{"name": "verify", "state": {"running": {}}}],
             "containerStatuses": [waiting("PodInitializing")]},
            "its init container verify still runs", "verify",
        ),
        (
            {"initContainerStatuses": [{"name": "verify", "state": {"terminated": {}}}],
             "containerStatuses": [waiting("PodInitializing")]},
            "its image is being pulled", None,
        ),
        ({"containerStatuses": [RUNNING]}, "its readiness probe fails", "vllm"),
        (
            {"containerStatuses": [{**RUNNING, "ready": True}], "conditions": [
                condition("Ready", "False", reason="ReadinessGatesNotReady", message="no NEG")]},
            "its readiness gates are not met: no NEG", None,
        ),
    ],
)  # fmt: skip
def test_a_slow_pod_says_what_it_waits_for(
    status: dict[str, Any], words: str, container: str | None
) -> None:
    said, whose = slow_words(pod(**status))
    assert words in said
    assert whose == container


def test_a_paused_deployment_is_the_reason() -> None:
    item = {"kind": "Deployment", "metadata": {"name": "d"}, "spec": {"paused": True}}
    found = find_creation_trouble([item])
    assert found is not None and (found.object, found.reason) == ("Deployment/d", "Paused")


def test_a_quota_is_the_reason_of_a_deployment_without_pods() -> None:
    failure = condition("ReplicaFailure", "True", reason="FailedCreate", message="exceeded quota")
    item = {"kind": "ReplicaSet", "metadata": {"name": "r"}, "status": {"conditions": [failure]}}
    found = find_creation_trouble([{"kind": "Deployment", "metadata": {"name": "d"}}, item])
    assert found == Trouble("ReplicaSet/r", "FailedCreate", "exceeded quota")
    assert found.line() == "ReplicaSet/r: FailedCreate: exceeded quota"
