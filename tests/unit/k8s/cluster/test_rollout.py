"""How long a rollout may take, and whose status ends the waiting."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from k8s.cluster import rollout
from k8s.cluster.changes import REVISION
from k8s.cluster.kubectl import Cluster
from k8s.cluster.rollout import Rollout, rollout_limit_s, wait_for_rollout
from tuneline.core.errors import ServerError

LATE = {"type": "Progressing", "status": "False", "reason": "ProgressDeadlineExceeded"}
Watch = Callable[..., Rollout]


def sized(kind: str, field: str, number: int) -> dict[str, Any]:
    return {"kind": kind, "spec": {field: number}}


@pytest.mark.parametrize(
    ("objects", "limit_s"),
    [
        ([{"kind": "Deployment", "spec": {}}], 630),
        ([sized("Deployment", "replicas", 10)], 6030),
        ([{"kind": "Deployment", "spec": {}}, sized("HorizontalPodAutoscaler", "maxReplicas", 10)],
         6030),
        ([{"kind": "Deployment", "spec": {}}, sized("ScaledObject", "maxReplicaCount", 4)], 2430),
        # The version that is left may have more pods and a longer deadline.
        ([sized("Deployment", "replicas", 2), sized("Deployment", "replicas", 3)], 1830),
        ([sized("Deployment", "replicas", 2),
          sized("Deployment", "progressDeadlineSeconds", 1000)], 2030),
        ([{"kind": "ConfigMap"}], 630),
    ],
)  # fmt: skip
def test_the_limit_has_the_deadline_once_for_each_pod(
    objects: list[dict[str, Any]], limit_s: float
) -> None:
    assert rollout_limit_s(objects) == limit_s


def look(
    revision: int, *, observed: bool = True, trouble: str = "", late: dict[str, str] | None = None,
    is_done: bool = False,
) -> Rollout:  # fmt: skip
    """Return generation 3 of a Deployment whose newest pod is that of a revision."""
    deployment = {
        "kind": "Deployment",
        "metadata": {"name": "t", "generation": 3, "annotations": {REVISION: str(revision)}},
        "spec": {"replicas": 1},
        "status": {
            "observedGeneration": 3 if observed else 2, "replicas": 1,
            "updatedReplicas": int(is_done), "availableReplicas": int(is_done),
            "conditions": [] if late is None else [late],
        },
    }  # fmt: skip
    sets = [
        {
            "kind": "ReplicaSet",
            "metadata": {
                "name": f"t-{number}", "labels": {"pod-template-hash": f"h{number}"},
                "annotations": {REVISION: str(number)},
            },
        }
        for number in (1, 2, 3)
    ]  # fmt: skip
    pod = {
        "kind": "Pod",
        "metadata": {"name": "p", "labels": {"pod-template-hash": f"h{revision}"}},
        "status": {
            "containerStatuses": [{"name": "vllm", "state": {"waiting": {"reason": trouble}}}]
        },
    }
    return Rollout(deployment, sets, [pod])


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Watch:
    """Wait while the cluster shows one look after the other; the last one stays."""

    def waited(*looks: Rollout, timeout_s: float = 60.0) -> Rollout:
        left = list(looks)
        monkeypatch.setattr(
            rollout, "read_rollout", lambda *_: left.pop(0) if len(left) > 1 else left[0]
        )
        return wait_for_rollout(Cluster("k", "c", "n"), "t", "t", timeout_s=timeout_s)

    monkeypatch.setattr(rollout, "POLL_S", 0.0)
    monkeypatch.setattr(rollout, "read_log", lambda *_: [])
    return waited


def test_a_crash_of_the_version_that_is_left_does_not_end_the_waiting(watch: Watch) -> None:
    left = look(2, observed=False, trouble="CrashLoopBackOff")
    assert watch(left, left, look(3, is_done=True)).is_done()
    with pytest.raises(ServerError, match="0 of 1 new pods are ready"):
        watch(left, look(3, trouble="CrashLoopBackOff"), look(3, is_done=True))


def test_failed_pods_that_have_successors_do_not_end_the_waiting(watch: Watch) -> None:
    """A node has evicted two pods; the third one loads."""
    now = look(3)
    labels = {"pod-template-hash": "h3"}
    status = {"phase": "Failed", "reason": "Evicted"}
    evicted = [
        {"kind": "Pod", "metadata": {"name": name, "labels": labels}, "status": status}
        for name in ("a", "b")
    ]
    gone = {"name": "c", "labels": labels, "deletionTimestamp": "2026-01-01T00:00:00Z"}
    ending = {"kind": "Pod", "metadata": gone, "status": {"phase": "Failed"}}
    now.pods.extend([*evicted, ending])
    assert [one.line() for one in now.troubles()] == ["a: Failed: Evicted"]
    assert watch(now, now, look(3, is_done=True)).is_done()


def test_a_deadline_of_the_version_that_is_left_does_not_end_the_waiting(watch: Watch) -> None:
    assert watch(look(3, late=LATE), look(3, late=LATE), look(3, is_done=True)).is_done()
    with pytest.raises(ServerError, match="0 of 1 new pods are ready"):
        watch(look(3, late=LATE), look(3), look(3, late=LATE), look(3, is_done=True))
    again = {**LATE, "lastUpdateTime": "2026-01-01T00:00:00Z"}
    with pytest.raises(ServerError, match="0 of 1 new pods are ready"):
        watch(look(3, late=LATE), look(3, late=again), look(3, is_done=True))


def test_a_deadline_that_never_changes_ends_at_the_limit(watch: Watch) -> None:
    with pytest.raises(ServerError, match="0 of 1 new pods are ready"):
        watch(look(3, late=LATE), timeout_s=0.01)


def test_a_controller_that_does_not_act_is_named_at_the_limit(watch: Watch) -> None:
    with pytest.raises(ServerError, match="t: its controller has not seen the change"):
        watch(look(2, observed=False, trouble="CrashLoopBackOff"), timeout_s=0.01)
