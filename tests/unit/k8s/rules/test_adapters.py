"""The rules on adapters at run time: each of them broken once."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, TypeAlias

import pytest

from k8s.rules import adapters
from k8s.rules.check import check_manifests
from tests.unit.k8s.rules.reached import unreached_yields

Objects: TypeAlias = list[dict[str, Any]]
Tree: TypeAlias = Callable[[str], Objects]
TREE = "adapters"


def server(objects: Objects) -> Any:
    (found,) = (item for item in objects if item["kind"] == "Deployment")
    return found["spec"]


def pod(objects: Objects) -> Any:
    return server(objects)["template"]["spec"]


def job(objects: Objects) -> Any:
    """Return the specification of the Job that brings the adapters."""
    (found,) = (
        item
        for item in objects
        if item["kind"] == "Job" and "-adapters-" in item["metadata"]["name"]
    )
    return found["spec"]


def settings(objects: Objects, **changes: Any) -> None:
    (container,) = pod(objects)["containers"]
    (entry,) = (entry for entry in container["env"] if entry["name"] == "TUNELINE_ADAPTERS")
    entry["value"] = json.dumps({**json.loads(entry["value"]), **changes})


def without_variable(name: str) -> Callable[[Objects], None]:
    def mutation(objects: Objects) -> None:
        (container,) = pod(objects)["containers"]
        container["env"] = [entry for entry in container["env"] if entry["name"] != name]

    return mutation


def desired(objects: Objects, entries: dict[str, Any]) -> None:
    (item,) = (
        item
        for item in objects
        if item["kind"] == "ConfigMap" and item["metadata"]["name"].endswith("-adapters")
    )
    item["data"]["desired.json"] = json.dumps(entries)


ENTRY = {"adapter": "/adapters/a", "reference": "/adapters/b", "digest": "sha256:" + "e" * 64}
BROKEN: list[tuple[str, str, Callable[[Objects], Any], str]] = [
    (
        "a folder that ends with the pod",
        TREE,
        lambda o: settings(o, state_dir="/cache/state"),
        "state_dir /cache/state is not on a claim; a new pod would lose it",
    ),
    (
        "another base",
        TREE,
        lambda o: settings(o, base_dir="/model"),
        "adapters fit /model; the server serves /model/support-tickets-0123456789ab",
    ),
    (
        "a server without LoRA",
        TREE,
        lambda o: pod(o)["containers"][0]["args"].remove("--enable-lora"),
        "takes adapters without --enable-lora",
    ),
    (
        "no named keys",
        TREE,
        without_variable("TUNELINE_KEYS_FILE"),
        "TUNELINE_KEYS_FILE is not set; nobody has an admin key",
    ),
    (
        "two pods",
        TREE,
        lambda o: server(o).update(replicas=2),
        "adapters are those of one pod; expected replicas 1 and maxSurge 0, not 2 and 0",
    ),
    (
        "another server",
        TREE,
        lambda o: job(o)["template"]["spec"]["containers"][0]["args"].__setitem__(
            0, "http://other:8000/v1"
        ),
        "http://other:8000/v1 is not a Service of these manifests",
    ),
    (
        "a server that still loads",
        TREE,
        lambda o: job(o).update(backoffLimit=0),
        "a server that still loads must be asked again (exit code 5)",
    ),
    (
        "a refused adapter that is tried again",
        TREE,
        lambda o: job(o)["podFailurePolicy"]["rules"].pop(),
        "a refused adapter is not tried again (exit codes 3, 6 and 7)",
    ),
    (
        "a server that takes none",
        TREE,
        without_variable("TUNELINE_ADAPTERS"),
        "the server takes no adapters; TUNELINE_ADAPTERS is not set",
    ),
    (
        "more than the server takes",
        TREE,
        lambda o: desired(o, dict.fromkeys(("a", "b", "c"), ENTRY)),
        "wants 3 adapters; serving.adapters.max_adapters is 2",
    ),
    (
        "the name of the model",
        TREE,
        lambda o: desired(o, {"support-tickets": ENTRY}),
        "support-tickets is a name of the server's own model",
    ),
    (
        "a folder elsewhere",
        TREE,
        lambda o: desired(o, {"a": {**ENTRY, "reference": "/other/b"}}),
        "/other/b is not below /adapters",
    ),
]


@pytest.mark.parametrize(
    ("name", "mutation", "expected"),
    [entry[1:] for entry in BROKEN],
    ids=[entry[0] for entry in BROKEN],
)
def test_a_broken_bringer_of_adapters_is_found(
    tree: Tree, name: str, mutation: Callable[[Objects], Any], expected: str
) -> None:
    objects = tree(name)
    assert check_manifests(objects) == []
    mutation(objects)
    found = check_manifests(objects)
    assert any(expected in problem for problem in found), found


def test_every_problem_of_adapters_is_reported_above(tree: Tree) -> None:
    """Each `yield` of a rule runs for one of BROKEN."""
    broken = ((tree(name), mutation) for _, name, mutation, _ in BROKEN)
    unreached, number = unreached_yields([adapters], broken)
    assert unreached == []
    assert number >= 12
