"""The rules on a training's pods: each of them broken once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import pytest

from k8s.rules import training
from k8s.rules.check import check_manifests
from k8s.rules.training import MISTAKES
from tests.unit.k8s.only import only
from tests.unit.k8s.rules.reached import unreached_yields
from tuneline.core import errors

Objects: TypeAlias = list[dict[str, Any]]
Tree: TypeAlias = Callable[[str], Objects]


def job(objects: Objects) -> Any:
    """Return the specification of the Job, wherever it is."""
    for item in objects:
        if item["kind"] == "Job":
            return item["spec"]
        if item["kind"] == "JobSet":
            return item["spec"]["replicatedJobs"][0]["template"]["spec"]
    raise AssertionError("no Job")


def pod(objects: Objects) -> Any:
    return job(objects)["template"]["spec"]


def container(objects: Objects) -> Any:
    return pod(objects)["containers"][0]


def rules(objects: Objects) -> Any:
    return job(objects)["podFailurePolicy"]["rules"]


def variable(objects: Objects, name: str) -> Any:
    (found,) = (entry for entry in container(objects)["env"] if entry["name"] == name)
    return found


def on_the_node(objects: Objects) -> None:
    (volume,) = (volume for volume in pod(objects)["volumes"] if volume["name"] == "work")
    del volume["persistentVolumeClaim"]
    volume["emptyDir"] = {"sizeLimit": "1Gi"}


# The tree, a change to it, and a part of the problem that must be reported.
BROKEN: list[tuple[str, str, Callable[[Objects], Any], str]] = [
    (
        "restarted in its pod",
        "training",
        lambda o: pod(o).update(restartPolicy="OnFailure"),
        "restartPolicy must be Never",
    ),
    (
        "a drain that counts",
        "training",
        lambda o: rules(o).pop(0),
        "must first Ignore on DisruptionTarget",
    ),
    (
        "a drain after the exit codes",
        "training",
        lambda o: rules(o).reverse(),
        "must first Ignore on DisruptionTarget",
    ),
    (
        "a drain that leaves the other hosts waiting",
        "training job-set",
        lambda o: rules(o)[0].update(action="Ignore"),
        "must first FailJob on DisruptionTarget",
    ),
    (
        "a crash that is not tried again",
        "training",
        lambda o: rules(o)[1]["onExitCodes"]["values"].append(1),
        "ends the Job on [1, 2, 3, 6, 7, 8]; expected [2, 3, 6, 7, 8]",
    ),
    (
        "exit codes of another container",
        "training",
        lambda o: rules(o)[1]["onExitCodes"].update(containerName="main"),
        "podFailurePolicy names main; expected train",
    ),
    (
        "without an end",
        "training",
        lambda o: job(o).pop("activeDeadlineSeconds"),
        "activeDeadlineSeconds is not set",
    ),
    (
        "without a message",
        "training",
        lambda o: container(o)["env"].remove(variable(o, "TUNELINE_POD_MESSAGE")),
        "the pod would not name its error",
    ),
    (
        "no time for a checkpoint",
        "training",
        lambda o: pod(o).update(terminationGracePeriodSeconds=30),
        "terminationGracePeriodSeconds 30 is not above 30",
    ),
    (
        "Kubernetes' own grace period",
        "training",
        lambda o: pod(o).pop("terminationGracePeriodSeconds"),
        "terminationGracePeriodSeconds 30 is not above 30",
    ),
    (
        "artifacts on a read-only file system",
        "training",
        lambda o: container(o).update(args=["/config/run.yaml"]),
        "--runs-dir runs is not below a writable mount",
    ),
    (
        "artifacts that are lost",
        "training",
        on_the_node,
        "is lost with the pod; expected a claim or --push-to",
    ),
    (
        "a study in each pod",
        "training search",
        on_the_node,
        "--runs-dir /work/runs is lost with the pod; expected a claim",
    ),
    (
        "workers one after the other",
        "training search",
        lambda o: job(o).update(parallelism=1),
        "parallelism 1 of 4 completions",
    ),
    (
        "hosts without an index",
        "training job-set",
        lambda o: job(o).pop("completionMode"),
        "expected an Indexed Job whose pods all run at one time",
    ),
    (
        "a pod with a long name",
        "training with a long name",
        lambda o: job(o).update(completions=100, parallelism=100),
        "-train-node-0-99-xxxxx has 64 characters; a pod's may have 63",
    ),
    (
        "no process group",
        "training job-set",
        lambda o: container(o)["env"].remove(variable(o, "RANK")),
        "RANK: not set; the pods would not find one another",
    ),
    (
        "another master",
        "training job-set",
        lambda o: variable(o, "MASTER_ADDR").update(value="support-tickets-train-0"),
        "MASTER_ADDR is support-tickets-train-0; expected "
        "support-tickets-train-node-0-0.support-tickets-train",
    ),
    (
        "pods without names",
        "training job-set",
        lambda o: only(o, "JobSet")["spec"]["network"].update(enableDNSHostnames=False),
        "the first pod in the headless Service",
    ),
    (
        "another number of hosts",
        "training job-set",
        lambda o: variable(o, "WORLD_SIZE").update(value="3"),
        "WORLD_SIZE is 3; expected 2",
    ),
    (
        "a runtime that is not there",
        "training train-job",
        lambda o: only(o, "TrainJob")["spec"]["runtimeRef"].update(name="torch-distributed"),
        "TrainingRuntime/torch-distributed is not here",
    ),
    (
        "a TrainJob of other hosts",
        "training train-job",
        lambda o: only(o, "TrainJob")["spec"]["trainer"].update(numNodes=3),
        "has 3 hosts; its TrainingRuntime is written for 2",
    ),
]


@pytest.mark.parametrize(
    ("name", "mutation", "expected"),
    [entry[1:] for entry in BROKEN],
    ids=[entry[0] for entry in BROKEN],
)
def test_a_broken_training_is_found(
    tree: Tree, name: str, mutation: Callable[[Objects], Any], expected: str
) -> None:
    objects = tree(name)
    assert check_manifests(objects) == []
    mutation(objects)
    found = check_manifests(objects)
    assert any(expected in problem for problem in found), found


def test_every_problem_of_a_training_is_reported_above(tree: Tree) -> None:
    """Each `yield` of a rule runs for one of BROKEN."""
    broken = ((tree(name), mutation) for _, name, mutation, _ in BROKEN)
    unreached, number = unreached_yields([training], broken)
    assert unreached == []
    assert number > 10


def test_the_exit_codes_that_are_not_tried_again_are_mistakes_and_verdicts() -> None:
    kinds = (
        errors.ConfigError, errors.ArtifactError, errors.VerdictError, errors.InconclusiveError,
        errors.InvalidError,
    )  # fmt: skip
    assert {kind.exit_code for kind in kinds} == MISTAKES
    assert not {errors.MissingError.exit_code, errors.ServerError.exit_code, 1, 143} & MISTAKES
