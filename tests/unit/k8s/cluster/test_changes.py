"""Changes between live objects and those that an apply would leave."""

from __future__ import annotations

from typing import Any

import pytest

from k8s.cluster.changes import change_lines, clean, compare_objects


def deployment(**values: Any) -> dict[str, Any]:
    container = {
        "name": "vllm", "image": values.get("image", "server:1"),
        "args": values.get("args", ["/model", "--port=8000"]),
        "env": values.get("env", []),
    }  # fmt: skip
    return {
        "apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {
            "name": "a-model-server", "generation": values.get("generation", 1),
            "resourceVersion": str(values.get("generation", 1)), "uid": "u", "managedFields": [],
            "annotations": {
                "tuneline/release": values.get("release", "sha256:a"),
                "deployment.kubernetes.io/revision": str(values.get("generation", 1)),
            },
        },
        "spec": {
            "replicas": values.get("replicas", 1),
            "template": {"spec": {"containers": [container]}},
        },
        "status": {"replicas": 1},
    }  # fmt: skip


def test_fields_of_the_server_are_not_changes() -> None:
    assert compare_objects([deployment()], [deployment(generation=7)]) == []


def test_a_new_object_is_created_and_a_left_one_removed() -> None:
    gone = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c"}}
    found = compare_objects([], [deployment()], [gone])
    assert [(one.action, one.object) for one in found] == [
        ("create", "Deployment/a-model-server"), ("remove", "ConfigMap/c"),
    ]  # fmt: skip


def test_the_words_begin_with_release_image_replicas_and_flags() -> None:
    old = deployment(env=[{"name": "A", "value": "1"}, {"name": "B", "value": "1"}])
    new = deployment(
        release="sha256:b", image="server:2", replicas=3, args=["/model", "--port=9"],
        env=[{"name": "B", "value": "2"}, {"name": "C", "value": "3"}],
    )  # fmt: skip
    lines = change_lines([old], [new], compare_objects([old], [new]))
    where = "  spec.template.spec.containers[vllm]"
    assert lines == [
        "release: sha256:a -> sha256:b",
        "image: server:1 -> server:2",
        "replicas: 1 -> 3",
        "flags, removed: --port=8000",
        "flags, added: --port=9",
        "changed: Deployment/a-model-server",
        "Deployment/a-model-server:",
        "  metadata.annotations.tuneline/release: sha256:a -> sha256:b",
        "  spec.replicas: 1 -> 3",
        f"{where}.image: server:1 -> server:2",
        f'{where}.args: ["/model", "--port=8000"] -> ["/model", "--port=9"]',
        f'{where}.env[A]: {{"name": "A", "value": "1"}} -> (none)',
        f"{where}.env[B].value: 1 -> 2",
        f'{where}.env[C]: (none) -> {{"name": "C", "value": "3"}}',
    ]


@pytest.mark.parametrize("field", ["data", "stringData"])
def test_values_of_a_secret_are_never_shown(field: str) -> None:
    def secret(value: str) -> dict[str, Any]:
        metadata = {"name": "s", "labels": {"team": value}}
        return {"apiVersion": "v1", "kind": "Secret", "metadata": metadata, field: {"key": value}}

    old, new = [secret("b2xk")], [secret("bmV3")]
    lines = change_lines(old, new, compare_objects(old, new))
    assert lines == [
        "changed: Secret/s",
        "Secret/s:",
        "  metadata.labels.team: b2xk -> bmV3",
        f"  {field}.key: *** -> ***",
    ]
    created = {key: value for key, value in old[0].items() if key != field}
    assert "bmV3" not in "".join(change_lines([created], new, compare_objects([created], new))[3:])


@pytest.mark.parametrize("name", ["API_KEY", "DB_PASSWORD", "HF_TOKEN"])
@pytest.mark.parametrize(
    ("before", "after"), [("old-value", "new-value"), (None, "new-value"), ("old-value", None)]
)
def test_a_variable_that_is_named_like_a_secret_is_hidden(
    name: str, before: str | None, after: str | None
) -> None:
    old, new = (
        [deployment(env=[] if value is None else [{"name": name, "value": value}])]
        for value in (before, after)
    )
    text = "\n".join(change_lines(old, new, compare_objects(old, new)))
    assert name in text
    assert "-value" not in text


@pytest.mark.parametrize("added", [True, False], ids=["added", "removed"])
def test_variables_of_a_whole_container_are_hidden(added: bool) -> None:
    old, new = deployment(), deployment()
    sidecar = {"name": "push", "env": [{"name": "HF_TOKEN", "value": "a-value"}]}
    (new if added else old)["spec"]["template"]["spec"]["containers"].append(sidecar)
    found = compare_objects([old], [new])
    assert [change.action for change in found] == ["change"]
    assert "HF_TOKEN" in repr(found)
    assert "a-value" not in repr(found)


def test_a_long_value_is_cut() -> None:
    def config(text: str) -> dict[str, Any]:
        return {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": "c"},
            "data": {"a": text},
        }

    old, new = [config("x")], [config("line\n" * 100)]
    line = change_lines(old, new, compare_objects(old, new))[-1]
    assert len(line) < 200
    assert line.endswith("…")
    assert "\n" not in line


def test_a_live_object_loses_what_only_the_server_sets() -> None:
    assert clean(deployment())["metadata"] == {
        "name": "a-model-server", "annotations": {"tuneline/release": "sha256:a"},
    }  # fmt: skip
