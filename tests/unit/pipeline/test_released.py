"""Manifests come from a release whose gates pass, of the model that is deployed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tuneline.core.artifact import new_artifact, open_artifact
from tuneline.core.documents import write_document
from tuneline.core.errors import (
    ArtifactError,
    NotAnArtifactError,
    TamperedError,
    VerdictError,
)
from tuneline.core.release import RELEASE_FILE, RELEASE_KIND, Release
from tuneline.pipeline.released import find_release, mark_last_release

MODEL = "sha256:" + "a" * 64
SHA = "0" * 64
SERVING = {"mode": "merged", "max_num_seqs": 8, "port": None}
CONFIG = {"serving": SERVING, "release": {"threshold": 0.9}, "name": "tickets"}


def release(verdict: str, created_at: str, model: str = MODEL) -> Release:
    outcome = "passed" if verdict == "PASS" else "failed"
    gate = {
        "name": "load", "title": "Does it hold the load?", "outcome": outcome, "required": "PASS",
        "observed": verdict, "words": f"The load test says {verdict}.",
    }  # fmt: skip
    served: dict[str, Any] = {
        "stage": "model", "form": "merged", "kind": "model", "digest": model, "directory": "m",
        "size_bytes": 1, "served_name": "tickets", "weights": "float32", "files": [],
    }  # fmt: skip
    values = {
        "format_version": 1, "name": "tickets", "verdict": verdict, "created_at": created_at,
        "tuneline_version": "0.1.0", "model": served,
        "base": {"id": "base", "revision": None, "digest": MODEL, "license": "Apache-2.0"},
        "data": {
            "paths": [], "inputs": [], "digest": MODEL, "num_train": 1, "num_heldout": 1,
            "train_sha256": SHA, "heldout_sha256": SHA, "license": None,
        },
        "gates": [gate], "figures": [], "chain": [], "config": CONFIG,
        "reproduce": {
            "command": "tuneline up", "python": "3.11", "git_commit": None, "libraries": {},
            "hardware": {},
        },
    }  # fmt: skip
    return Release.model_validate(values)


def put(run_dir: Path, key: str, written: Release) -> Path:
    out = run_dir / f"release-{key}"
    with new_artifact(out, RELEASE_KIND, config={}) as draft:
        write_document(written, draft.dir / RELEASE_FILE)
    return out


def test_the_newest_release_that_passes_is_taken(tmp_path: Path) -> None:
    put(tmp_path, "a", release("PASS", "2026-11-01T00:00:00Z"))
    newest = put(tmp_path, "b", release("PASS", "2026-11-02T00:00:00Z"))
    put(tmp_path, "c", release("FAIL", "2026-10-03T00:00:00Z"))
    put(tmp_path, "d", release("PASS", "2026-11-04T00:00:00Z", model="sha256:" + "b" * 64))
    artifact, found = find_release(tmp_path, "tuneline release run.yaml", MODEL, CONFIG)
    assert artifact.path == newest
    assert found.created_at == "2026-11-02T00:00:00Z"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"verdict": "PASS"}, "the verdict PASS contradicts the failed gates: load"),
        ({"waivers": [{"gate": "load", "why": "x"}]}, "the waivers are not those of the waived"),
        ({"gates": [{"outcome": "waived"}], "verdict": "PASS"}, "the waivers are not those of"),
    ],
    ids=["verdict", "waiver", "no waiver"],
)
def test_a_release_that_contradicts_itself_is_refused(
    tmp_path: Path, change: dict[str, Any], words: str
) -> None:
    values = release("FAIL", "2026-11-01T00:00:00Z").model_dump(mode="json")
    if "gates" in change:
        change = {**change, "gates": [values["gates"][0] | change["gates"][0]]}
    out = tmp_path / "release-a"
    with new_artifact(out, RELEASE_KIND, config={}) as draft:
        (draft.dir / RELEASE_FILE).write_text(json.dumps(values | change))
    with pytest.raises(ArtifactError, match=words):
        find_release(tmp_path, "tuneline release run.yaml", MODEL, CONFIG, out)


def test_an_older_release_does_not_outweigh_a_newer_failure(tmp_path: Path) -> None:
    old = put(tmp_path, "a", release("PASS", "2026-11-01T00:00:00Z"))
    put(tmp_path, "b", release("FAIL", "2026-11-03T00:00:00Z"))
    with pytest.raises(VerdictError, match=r"release-b: FAIL"):
        find_release(tmp_path, "tuneline release run.yaml", MODEL, CONFIG)
    artifact, _ = find_release(tmp_path, "tuneline release run.yaml", MODEL, CONFIG, old)
    assert artifact.path == old


def test_of_two_releases_in_one_second_the_failure_decides(tmp_path: Path) -> None:
    put(tmp_path, "a", release("FAIL", "2026-11-01T00:00:00Z"))
    put(tmp_path, "b", release("PASS", "2026-11-01T00:00:00Z"))
    with pytest.raises(VerdictError, match=r"release-a: FAIL"):
        find_release(tmp_path, "tuneline release run.yaml", MODEL, CONFIG)


def test_a_release_of_another_server_is_not_deployed(tmp_path: Path) -> None:
    put(tmp_path, "a", release("PASS", "2026-11-01T00:00:00Z"))
    changed = {**CONFIG, "serving": {**SERVING, "max_num_seqs": 64, "quantization": "fp8"}}
    with pytest.raises(VerdictError, match="is about another server") as caught:
        find_release(tmp_path, "tuneline release run.yaml", MODEL, changed)
    assert "serving.max_num_seqs, serving.quantization" in str(caught.value)
    assert "serving.mode" not in str(caught.value)
    assert caught.value.exit_code == 6


def test_a_port_of_this_machine_needs_no_new_release(tmp_path: Path) -> None:
    out = put(tmp_path, "a", release("PASS", "2026-11-01T00:00:00Z"))
    elsewhere = {**CONFIG, "serving": {**SERVING, "port": 8123}}
    found, _ = find_release(tmp_path, "tuneline release run.yaml", MODEL, elsewhere)
    assert found.path == out


def test_a_release_judged_by_other_limits_is_not_deployed(tmp_path: Path) -> None:
    put(tmp_path, "a", release("PASS", "2026-11-01T00:00:00Z"))
    stricter = {**CONFIG, "release": {"threshold": 0.99}}
    with pytest.raises(VerdictError, match=r"other values of release\.threshold") as caught:
        find_release(tmp_path, "tuneline release run.yaml", MODEL, stricter)
    assert "tuneline release run.yaml" in (caught.value.hint or "")


def test_the_release_that_was_returned_last_counts(tmp_path: Path) -> None:
    """PASS, then FAIL, then PASS again: the third call returns the first release as it is."""
    first = put(tmp_path, "a", release("PASS", "2026-11-01T00:00:00Z"))
    failed = put(tmp_path, "b", release("FAIL", "2026-11-03T00:00:00Z"))
    mark_last_release(open_artifact(failed))
    with pytest.raises(VerdictError, match=r"release-b: FAIL"):
        find_release(tmp_path, "tuneline release run.yaml", MODEL, CONFIG)
    mark_last_release(open_artifact(first))
    assert find_release(tmp_path, "tuneline release run.yaml", MODEL, CONFIG)[0].path == first


@pytest.mark.parametrize("content", ["no JSON", '{"format_version": 99}'])
def test_a_broken_release_does_not_hide_a_good_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, content: str
) -> None:
    good = put(tmp_path, "a", release("PASS", "2026-11-01T00:00:00Z"))
    changed = put(tmp_path, "b", release("PASS", "2026-11-02T00:00:00Z"))
    (changed / RELEASE_FILE).write_text(content)
    (tmp_path / "release-c").mkdir()
    (tmp_path / "release-c" / RELEASE_FILE).write_text(content)
    with caplog.at_level("WARNING"):
        artifact, _ = find_release(tmp_path, "tuneline release run.yaml", MODEL, CONFIG)
    assert artifact.path == good
    assert [line.partition(": ")[0][-9:] for line in caplog.messages] == ["release-b", "release-c"]
    with pytest.raises(TamperedError):
        find_release(tmp_path, "tuneline release run.yaml", MODEL, CONFIG, changed)


def test_a_release_that_fails_names_its_gates(tmp_path: Path) -> None:
    put(tmp_path, "a", release("FAIL", "2026-11-01T00:00:00Z"))
    with pytest.raises(VerdictError, match=r"load: The load test says FAIL\.") as caught:
        find_release(tmp_path, "tuneline release run.yaml", MODEL, CONFIG)
    assert caught.value.exit_code == 6
    assert "tuneline release run.yaml" in (caught.value.hint or "")
    assert "--allow-unreleased" in (caught.value.hint or "")


def test_a_model_without_a_release_is_not_deployed(tmp_path: Path) -> None:
    with pytest.raises(VerdictError, match="has no release"):
        find_release(tmp_path, "tuneline release run.yaml", MODEL, CONFIG)
    other = put(tmp_path, "b", release("PASS", "2026-11-02T00:00:00Z", "sha256:" + "b" * 64))
    with pytest.raises(VerdictError, match=r"has no release; .*release-b is of b{12}") as error:
        find_release(tmp_path, "tuneline release run.yaml", MODEL, CONFIG, other)
    assert error.value.exit_code == 6


def test_a_directory_that_is_no_release_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotAnArtifactError):
        find_release(tmp_path, "tuneline release run.yaml", MODEL, CONFIG, tmp_path / "nowhere")


def test_a_release_that_was_changed_is_refused(tmp_path: Path) -> None:
    out = put(tmp_path, "a", release("FAIL", "2026-11-01T00:00:00Z"))
    assert open_artifact(out).kind == RELEASE_KIND
    file = out / RELEASE_FILE
    file.write_text(file.read_text().replace('"FAIL"', '"PASS"').replace("failed", "passed"))
    with pytest.raises(TamperedError, match=r"release\.json"):
        find_release(tmp_path, "tuneline release run.yaml", MODEL, CONFIG)
