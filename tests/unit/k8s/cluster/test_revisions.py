"""The record of revisions: which one is kept, current, earlier."""

from __future__ import annotations

import os
import subprocess
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from k8s.cluster.revisions import (
    MAX_REVISIONS,
    Record,
    Revision,
    State,
    is_under_way,
    new_revision,
    without_server_fields,
)
from tuneline.core.errors import ArtifactError


def add(record: Record, state: State, size: int = 1) -> Revision:
    made = new_revision(record, release=None, model_digest="sha256:m", image="i", within_s=60)
    record.add(made.model_copy(update={"state": state}), [{"kind": "ConfigMap", "size": size}])
    return made


def numbers(record: Record) -> list[int]:
    return [one.number for one in record.history.revisions]


def test_the_proven_revision_is_kept_whatever_fails_after_it() -> None:
    record = Record("s", "run", None)
    assert record.history.earlier() is None
    add(record, "deployed")
    for _ in range(2 * MAX_REVISIONS):
        add(record, "failed")
        record.set_current(1)
    assert len(record.history.revisions) == MAX_REVISIONS
    assert numbers(record)[0] == 1
    assert numbers(record)[-1] == 2 * MAX_REVISIONS + 1
    assert sorted(record.manifests) == numbers(record)
    proven = record.history.proven()
    assert proven is not None
    assert proven.number == 1
    assert record.objects(1) == [{"kind": "ConfigMap", "size": 1}]


def test_the_earlier_revision_is_the_newest_proven_one_before() -> None:
    record = Record("s", "run", None)
    states: tuple[State, ...] = ("deployed", "deployed", "failed", "interrupted", "applying")
    for state in states:
        add(record, state)
    earlier = record.history.earlier()
    assert earlier is not None
    assert earlier.number == 2
    record.set_current(2)
    earlier = record.history.earlier()
    assert earlier is not None
    assert earlier.number == 1


def test_an_apply_after_a_roll_back_goes_back_to_what_ran() -> None:
    record = Record("s", "run", None)
    add(record, "deployed")
    add(record, "deployed")
    record.set_current(1)  # somebody went back from revision 2
    for _ in range(2):
        add(record, "interrupted")
        earlier = record.history.earlier()
        assert earlier is not None
        assert earlier.number == 1


@pytest.mark.parametrize(
    "packed", [None, "", "bm90IGd6aXA=", "H4sIAAAAAAAC/w==", "H4sIAAAAAAAC/wEB"]
)
def test_damaged_manifests_of_a_revision_are_an_error(packed: str | None) -> None:
    record = Record("s", "run", None)
    add(record, "deployed")
    record.manifests = {} if packed is None else {1: packed}
    with pytest.raises(
        ArtifactError, match=r"ConfigMap/s-revisions: 1\.json\.gz is damaged"
    ) as info:
        record.objects(1)
    assert info.value.hint == (
        "Try: kubectl delete configmap s-revisions; the server keeps running"
    )


def test_an_apply_counts_as_under_way_until_its_limit() -> None:
    record = Record("s", "run", None)
    begun = new_revision(record, release=None, model_digest="m", image="i", within_s=60)
    # This process begins another apply, so it does not run that one any more.
    assert not is_under_way(begun)
    revision = begun.model_copy(update={"process": os.getppid()})
    assert is_under_way(revision)
    assert not is_under_way(revision.model_copy(update={"state": "interrupted"}))
    dead = subprocess.Popen(["true"])
    dead.wait()
    assert not is_under_way(revision.model_copy(update={"process": dead.pid}))
    elsewhere = {"process": dead.pid, "applied_by": "ana@another-host"}
    assert is_under_way(revision.model_copy(update=elsewhere))
    past = (datetime.now(UTC) - timedelta(seconds=1)).isoformat()
    assert not is_under_way(revision.model_copy(update={"until": past}))


@pytest.mark.parametrize(
    "data",
    [{}, {"history.json": "{"}, {"history.json": '{"format_version": 2}'}, {"history.json": "[]"}],
)
def test_a_foreign_config_map_is_refused(data: dict[str, str]) -> None:
    live: dict[str, Any] = {"metadata": {"resourceVersion": "1"}, "data": data, "binaryData": {}}
    with pytest.raises(ArtifactError, match="is not the record of a deployment"):
        Record("s", "run", live)


def test_a_live_service_loses_its_address() -> None:
    live = {
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "s", "uid": "u"},
        "spec": {"clusterIP": "10.0.0.1", "clusterIPs": ["10.0.0.1"], "ports": [{"port": 8000}]},
        "status": {},
    }  # fmt: skip
    assert without_server_fields(live) == {
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "s"},
        "spec": {"ports": [{"port": 8000}]},
    }  # fmt: skip
