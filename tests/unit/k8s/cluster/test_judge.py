"""The Job of a judge that a queue does not admit."""

from __future__ import annotations

from typing import Any

import pytest

from k8s.cluster import judge
from k8s.cluster.kubectl import Cluster
from tuneline.core.errors import ServerError


def test_a_judge_that_its_queue_does_not_admit_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kueue suspends the Job, so that its own deadline does not begin."""
    metadata = {"name": "next-judge", "labels": {"kueue.x-k8s.io/queue-name": "team"}}
    job: dict[str, Any] = {
        "kind": "Job", "metadata": metadata, "spec": {"activeDeadlineSeconds": 0, "suspend": True},
    }  # fmt: skip
    applied: list[Any] = []
    monkeypatch.setattr(judge, "MARGIN_S", 0.0)
    monkeypatch.setattr(judge, "POLL_S", 0.01)
    monkeypatch.setattr(judge, "delete", lambda *_: None)
    monkeypatch.setattr(judge, "apply", lambda _, objects: applied.extend(objects))
    monkeypatch.setattr(judge, "get", lambda _, kind, *__: applied if kind == "jobs" else [])
    with pytest.raises(ServerError, match="is suspended: the queue team has not admitted it"):
        judge.run_judge(Cluster("kubectl", None, "tuneline"), [job])
    assert applied == [job]
