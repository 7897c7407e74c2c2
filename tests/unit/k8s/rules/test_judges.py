"""The rules on the judge of a canary: each of them broken once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import pytest

from k8s.rules import judges
from k8s.rules.check import check_manifests
from tests.unit.k8s.rules.reached import unreached_yields

Objects: TypeAlias = list[dict[str, Any]]
Tree: TypeAlias = Callable[[str], Objects]
JOB, TEMPLATE = "judged", "judged by Argo Rollouts"
SERVER = "http://support-tickets-model-server:8000/v1"


def spec(objects: Objects) -> Any:
    """Return the specification of the Job that judges a canary."""
    for item in objects:
        if item["kind"] == "AnalysisTemplate":
            return item["spec"]["metrics"][0]["provider"]["job"]["spec"]
        if item["kind"] == "Job" and item["metadata"]["name"].endswith("-judge"):
            return item["spec"]
    raise LookupError("no judge")


def told(position: int, word: str) -> Callable[[Objects], None]:
    def mutation(objects: Objects) -> None:
        spec(objects)["template"]["spec"]["containers"][0]["args"][position] = word

    return mutation


def metric(objects: Objects) -> Any:
    (found,) = (item for item in objects if item["kind"] == "AnalysisTemplate")
    return found["spec"]["metrics"][0]


BROKEN: list[tuple[str, str, Callable[[Objects], Any], str]] = [
    (
        "another server",
        JOB,
        told(1, "http://other:8000/v1"),
        "Job/support-tickets-judge: judges http://other:8000/v1; expected one of",
    ),
    (
        "a server with itself",
        JOB,
        told(0, SERVER),
        "expected the server of another run in the same namespace",
    ),
    (
        "a server in another namespace",
        TEMPLATE,
        told(0, "http://first.other:8000/v1"),
        "compares with http://first.other:8000/v1; expected the server of another run",
    ),
    (
        "any version",
        TEMPLATE,
        told(4, "--model-b=support-tickets"),
        "asks for ['support-tickets']; expected a name with the model's digest",
    ),
    (
        "another model",
        TEMPLATE,
        told(4, "--model-b=support-tickets@ba9876543210"),
        "model 'support-tickets@ba9876543210' is not served",
    ),
    (
        "no proof",
        JOB,
        lambda o: spec(o)["template"]["spec"].pop("initContainers"),
        f"an init container must prove the answers of {SERVER} first",
    ),
    (
        "a verdict that is tried again",
        TEMPLATE,
        lambda o: metric(o).pop("consecutiveErrorLimit"),
        "a verdict is not tried again: failureLimit and consecutiveErrorLimit must be 0",
    ),
    (
        "a pod that is tried again",
        TEMPLATE,
        lambda o: spec(o).update(backoffLimit=3),
        "a verdict is not tried again: backoffLimit 0",
    ),
    (
        "a failure without a name",
        TEMPLATE,
        lambda o: spec(o)["podFailurePolicy"]["rules"].pop(),
        "podFailurePolicy does not name the exit codes [1, 2, 3, 4, 5]",
    ),
]


@pytest.mark.parametrize(
    ("name", "mutation", "expected"),
    [entry[1:] for entry in BROKEN],
    ids=[entry[0] for entry in BROKEN],
)
def test_a_broken_judge_is_found(
    tree: Tree, name: str, mutation: Callable[[Objects], Any], expected: str
) -> None:
    objects = tree(name)
    assert check_manifests(objects) == []
    mutation(objects)
    found = check_manifests(objects)
    assert any(expected in problem for problem in found), found


def test_every_problem_of_a_judge_is_reported_above(tree: Tree) -> None:
    """Each `yield` of a rule runs for one of BROKEN."""
    broken = ((tree(name), mutation) for _, name, mutation, _ in BROKEN)
    unreached, number = unreached_yields([judges], broken)
    assert unreached == []
    assert number >= 5
