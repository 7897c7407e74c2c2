"""Two renderings of one run differ in no field that an API server refuses to change."""

from __future__ import annotations

import copy
from typing import Any, TypeAlias

from k8s.rules.updates import check_update

Objects: TypeAlias = list[dict[str, Any]]


def test_a_selector_and_an_access_mode_cannot_change(deployed: Objects) -> None:
    claim = {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": "models", "namespace": "tuneline"},
        "spec": {"accessModes": ["ReadWriteOnce"]},
    }
    before = [*deployed, claim]
    after = copy.deepcopy(before)
    assert list(check_update(before, after)) == []
    (deployment,) = (item for item in after if item["kind"] == "Deployment")
    deployment["spec"]["selector"]["matchLabels"]["tuneline/model-digest"] = "0123456789ab"
    after[-1]["spec"]["accessModes"] = ["ReadWriteMany"]
    found = list(check_update(before, after))
    assert len(found) == 2
    assert "Deployment/support-tickets-model-server: spec.selector changes from" in found[0]
    assert "PersistentVolumeClaim/models: spec.accessModes changes from" in found[1]


def test_objects_that_are_new_or_gone_are_no_update(deployed: Objects) -> None:
    half = len(deployed) // 2
    assert half > 3
    assert list(check_update(deployed[:half], deployed[half:])) == []
