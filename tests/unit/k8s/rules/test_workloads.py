"""The rules on servers that are not a Deployment: each of them broken once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import pytest

from k8s.rules import workloads
from k8s.rules.check import check_manifests
from tests.unit.k8s.only import only
from tests.unit.k8s.rules.reached import unreached_yields

Objects: TypeAlias = list[dict[str, Any]]
Tree: TypeAlias = Callable[[str], Objects]
HOSTS, LONG, KSERVE = "several hosts", "several hosts with a long name", "KServe"


def group(objects: Objects) -> Any:
    return only(objects, "LeaderWorkerSet")["spec"]["leaderWorkerTemplate"]


def args(objects: Objects, role: str) -> Any:
    return group(objects)[f"{role}Template"]["spec"]["containers"][0]["args"]


def swapped(role: str, old: str, new: str) -> Callable[[Objects], None]:
    def mutation(objects: Objects) -> None:
        found = args(objects, role)
        found[found.index(old)] = new

    return mutation


def alone(objects: Objects) -> None:
    (policy,) = (
        item
        for item in objects
        if item["kind"] == "NetworkPolicy" and item["metadata"]["name"].endswith("-hosts")
    )
    policy["spec"].pop("ingress")


def main(objects: Objects) -> Any:
    return only(objects, "LLMInferenceService")["spec"]["template"]["containers"][0]


BROKEN: list[tuple[str, str, Callable[[Objects], Any], str]] = [
    (
        "another number of hosts",
        HOSTS,
        lambda o: group(o).update(size=3),
        "the leader has --nnodes ['2']; expected 3",
    ),
    (
        "fewer GPUs than ranks",
        HOSTS,
        lambda o: group(o).update(size=1),
        "vLLM is told to use 8 GPU(s) and the pod has 4",
    ),
    (
        "more GPUs than ranks",
        HOSTS,
        lambda o: group(o).update(size=3),
        "vLLM is told to use 8 GPU(s) and the 3 hosts have 12",
    ),
    (
        "two leaders",
        HOSTS,
        swapped("worker", "--node-rank=$(LWS_WORKER_INDEX)", "--node-rank=0"),
        "the worker has --node-rank ['0']; expected $(LWS_WORKER_INDEX)",
    ),
    (
        "a leader that is not found",
        HOSTS,
        swapped("worker", "--master-addr=$(LWS_LEADER_ADDRESS)", "--master-addr=leader"),
        "the worker needs --master-addr $(LWS_LEADER_ADDRESS)",
    ),
    (
        "a worker with an API",
        HOSTS,
        lambda o: args(o, "worker").remove("--headless"),
        "expected --headless for the worker only",
    ),
    (
        "another model in the worker",
        HOSTS,
        lambda o: args(o, "worker").append("--max-model-len=2048"),
        "leader and worker differ in --max-model-len",
    ),
    (
        "a StatefulSet with a long name",
        LONG,
        lambda o: only(o, "LeaderWorkerSet")["spec"].update(replicas=11),
        "has 53 characters; expected at most 52",
    ),
    (
        "requests to a worker",
        HOSTS,
        lambda o: only(o, "Service")["spec"]["selector"].pop("tuneline/role"),
        "selects the workers of LeaderWorkerSet/support-tickets-model-server",
    ),
    (
        "hosts that cannot reach one another",
        HOSTS,
        alone,
        "no NetworkPolicy lets the other hosts reach the worker",
    ),
    (
        "a leader that keeps an accelerator",
        HOSTS,
        lambda o: only(o, "LeaderWorkerSet")["spec"].pop("rolloutStrategy"),
        "must free an accelerator",
    ),
    (
        "a Service in the place of the hosts' own",
        HOSTS,
        lambda o: only(o, "LeaderWorkerSet")["spec"].pop("networkConfig"),
        "no host finds the leader; expected subdomainPolicy UniquePerReplica",
    ),
    (
        "labels of the model under KServe",
        KSERVE,
        lambda o: only(o, "LLMInferenceService")["spec"]["labels"].update(
            only(o, "LLMInferenceService")["metadata"]["labels"]
        ),
        "the labels app.kubernetes.io/version, tuneline/model-digest change with the model",
    ),
    (
        "a container next to KServe's",
        KSERVE,
        lambda o: main(o).update(name="vllm"),
        "containers ['vllm']; expected main",
    ),
    (
        "a probe by HTTPS",
        KSERVE,
        lambda o: main(o)["readinessProbe"]["httpGet"].pop("scheme"),
        "readinessProbe asks by None; expected HTTP",
    ),
    (
        "a second handler of preStop",
        KSERVE,
        lambda o: main(o).update(lifecycle={"preStop": {"sleep": {"seconds": 15}}}),
        "expected a preStop by exec, as KServe's presets have",
    ),
    (
        "a model that KServe copies",
        KSERVE,
        lambda o: only(o, "LLMInferenceService")["spec"].pop("storageInitializer"),
        "storageInitializer would copy a model that no rule verified",
    ),
    (
        "a short grace under KServe",
        KSERVE,
        lambda o: only(o, "LLMInferenceService")["spec"]["template"].update(
            terminationGracePeriodSeconds=59
        ),
        "terminationGracePeriodSeconds 59 is below 60",
    ),
]


@pytest.mark.parametrize(
    ("name", "mutation", "expected"),
    [entry[1:] for entry in BROKEN],
    ids=[entry[0] for entry in BROKEN],
)
def test_a_broken_workload_is_found(
    tree: Tree, name: str, mutation: Callable[[Objects], Any], expected: str
) -> None:
    objects = tree(name)
    assert check_manifests(objects) == []
    mutation(objects)
    found = check_manifests(objects)
    assert any(expected in problem for problem in found), found


def test_every_problem_of_a_workload_is_reported_above(tree: Tree) -> None:
    """Each `yield` of a rule runs for one of BROKEN."""
    broken = ((tree(name), mutation) for _, name, mutation, _ in BROKEN)
    unreached, number = unreached_yields([workloads], broken)
    assert unreached == []
    assert number > 10
