"""The rules of `k8s.rules`: met by every tree, and each of them broken once."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from typing import Any, TypeAlias

import pytest

from k8s.config import HOST
from k8s.rules import (
    adapters,
    jobs,
    judges,
    metadata,
    pods,
    server,
    services,
    traffic,
    training,
    workloads,
)
from k8s.rules.check import RULES, check_manifests
from k8s.rules.objects import KEY_VOLUME, flags
from tests.unit.k8s.rules.reached import unreached_yields

Objects: TypeAlias = list[dict[str, Any]]
Mutation: TypeAlias = Callable[[Objects], Any]
MODULES = (metadata, services, pods, jobs, server, traffic)
"""Those that a deployment breaks; tests/unit/k8s/rules/test_training.py breaks the others."""


def test_every_tree_meets_every_rule(manifests: Objects) -> None:
    assert manifests
    assert check_manifests(manifests) == []


def test_every_generator_of_a_rule_module_is_a_rule() -> None:
    found = {
        function
        for module in (*MODULES, training, workloads, judges, adapters)
        for function in vars(module).values()
        if inspect.isgeneratorfunction(function) and function.__module__ == module.__name__
    }
    # Parts of rules, which a rule calls.
    parts = {metadata._empty, jobs._failures, traffic._scaled, server._trust}
    assert set(RULES) == found - parts
    assert len(RULES) == len(found - parts) == 51


def one(objects: Objects, kind: str) -> dict[str, Any]:
    found = [item for item in objects if item["kind"] == kind]
    if kind == "NetworkPolicy":  # the base's own; components bring others
        found = [item for item in found if item["metadata"]["name"].endswith("-model-server")]
    if kind in ("ServiceAccount", "ConfigMap"):  # the server's account, the load test's values
        end = "-model-server" if kind == "ServiceAccount" else "-load-test"
        found = [item for item in found if item["metadata"]["name"].endswith(end)]
    (only,) = found
    return only


def spec(objects: Objects, kind: str = "Deployment") -> Any:
    return one(objects, kind)["spec"]


def volume(objects: Objects, name: str) -> Any:
    (found,) = (entry for entry in pod(objects)["volumes"] if entry["name"] == name)
    return found


def pod(objects: Objects, kind: str = "Deployment") -> Any:
    return spec(objects, kind)["template"]["spec"]


def container(objects: Objects, kind: str = "Deployment") -> Any:
    return pod(objects, kind)["containers"][0]


def env(objects: Objects, name: str) -> Any:
    (entry,) = (entry for entry in container(objects)["env"] if entry["name"] == name)
    return entry


def without_arg(flag: str) -> Mutation:
    """Leave out a flag and what follows it up to the next flag."""

    def mutation(objects: Objects) -> None:
        kept, dropping = [], False
        for arg in container(objects)["args"]:
            if arg.startswith("--"):
                dropping = arg.partition("=")[0] == flag
            if not dropping:
                kept.append(arg)
        assert kept != container(objects)["args"]
        container(objects)["args"] = kept

    return mutation


def with_args(*args: str) -> Mutation:
    return lambda objects: container(objects)["args"].extend(args)


def cover_no_pod(objects: Objects) -> None:
    policies = [item for item in objects if item["kind"] == "NetworkPolicy"]
    assert len(policies) == 4
    for policy in policies:
        policy["spec"]["podSelector"]["matchLabels"].update({NAME: "x"})


def on_a_cpu(space: str | None) -> Mutation:
    def mutation(objects: Objects) -> None:
        for part in ("limits", "requests"):
            del container(objects)["resources"][part]["nvidia.com/gpu"]
        if space is None:
            container(objects)["env"].remove(env(objects, "VLLM_CPU_KVCACHE_SPACE"))
        else:
            env(objects, "VLLM_CPU_KVCACHE_SPACE")["value"] = space

    return mutation


def replaced(old: str, new: str, kind: str = "Deployment") -> Mutation:
    def mutation(objects: Objects) -> None:
        args = container(objects, kind)["args"]
        assert old in args
        args[args.index(old)] = new

    return mutation


def hpa(objects: Objects, **changes: Any) -> None:
    """Put a HorizontalPodAutoscaler in the place of the ScaledObject."""
    target = {"kind": "Deployment", "name": one(objects, "Deployment")["metadata"]["name"]}
    metric = {"name": changes.pop("metric", "tuneline_requests_in_flight")}
    item = one(objects, "ScaledObject")
    item["kind"] = "HorizontalPodAutoscaler"
    pods = {"metric": metric, "target": {"type": "AverageValue", "averageValue": "4"}}
    item["spec"] = {"scaleTargetRef": target, "metrics": [{"pods": pods}], **changes}


def hpa_above_the_limit(objects: Objects) -> None:
    hpa(objects)
    env(objects, "TUNELINE_SETTINGS").update(value='{"max_in_flight": 4}')


def trigger(objects: Objects) -> Any:
    return spec(objects, "ScaledObject")["triggers"][0]["metadata"]


def exit_codes(objects: Objects) -> Any:
    return spec(objects, "Job")["podFailurePolicy"]["rules"][1]["onExitCodes"]


def twins(objects: Objects) -> None:
    twin = copy.deepcopy(one(objects, "ScaledObject"))
    twin["metadata"]["name"] = "other"
    objects.append(twin)


NAME = "app.kubernetes.io/name"
SECURITY = "securityContext"

# A change to a sound deployment, and a part of the problem that must be reported.
BROKEN: list[tuple[str, Mutation, str]] = [
    ("twice", lambda o: o.append(copy.deepcopy(one(o, "Service"))), "is defined twice"),
    (
        "selector and labels differ",
        lambda o: spec(o)["template"]["metadata"]["labels"].update({NAME: "other"}),
        "does not match its pods' labels",
    ),
    (
        "digest in a selector",
        lambda o: spec(o)["selector"]["matchLabels"].update(
            {"tuneline/model-digest": "0123456789ab"}
        ),
        "a selector cannot change",
    ),
    (
        "service matches no pod",
        lambda o: spec(o, "Service")["selector"].update({NAME: "other"}),
        "Service/support-tickets-model-server: selector",
    ),
    (
        "service in another namespace",
        lambda o: one(o, "Service")["metadata"].update(namespace="other"),
        "matches no pod",
    ),
    (
        "service's target port",
        lambda o: spec(o, "Service")["ports"][0].update(targetPort="grpc"),
        "target port 'grpc' is not a port of",
    ),
    (
        "budget matches no pod",
        lambda o: spec(o, "PodDisruptionBudget")["selector"]["matchLabels"].update({NAME: "x"}),
        "PodDisruptionBudget/support-tickets-model-server: selector matches no pod",
    ),
    (
        "budget that blocks (minAvailable)",
        lambda o: spec(o, "PodDisruptionBudget").update(minAvailable=1),
        "no node could be drained",
    ),
    (
        "budget that blocks (maxUnavailable)",
        lambda o: spec(o, "PodDisruptionBudget").update(maxUnavailable=0),
        "no node could be drained",
    ),
    (
        "policy matches no pod",
        cover_no_pod,
        "no NetworkPolicy covers it",
    ),
    (
        "policy without egress",
        lambda o: spec(o, "NetworkPolicy").update(policyTypes=["Ingress"]),
        "policyTypes must name Ingress and Egress",
    ),
    (
        "policy open to all",
        lambda o: spec(o, "NetworkPolicy")["ingress"].append({"from": []}),
        "lets all in",
    ),
    (
        "policy's port",
        lambda o: spec(o, "NetworkPolicy")["ingress"][0]["ports"][0].update(port="grpc"),
        "port 'grpc' is not a port of",
    ),
    (
        "policy closed to its namespace",
        lambda o: spec(o, "NetworkPolicy")["ingress"].pop(0),
        "lets pods of its own namespace in",
    ),
    (
        "policy selector",
        lambda o: spec(o, "NetworkPolicy")["podSelector"]["matchLabels"].update({NAME: "x"}),
        "NetworkPolicy/support-tickets-model-server: selector matches no pod",
    ),
    (
        "monitor matches no service",
        lambda o: spec(o, "ServiceMonitor")["selector"]["matchLabels"].update({NAME: "x"}),
        "matches no Service",
    ),
    (
        "monitor's port",
        lambda o: spec(o, "ServiceMonitor")["endpoints"][0].update(port="metrics"),
        "port 'metrics' is not a port of Service",
    ),
    (
        "service account missing",
        lambda o: o.remove(one(o, "ServiceAccount")),
        "ServiceAccount/support-tickets-model-server is not in the manifests",
    ),
    (
        "config map missing",
        lambda o: o.remove(one(o, "ConfigMap")),
        "is not in the manifests",
    ),
    ("latest", lambda o: container(o).update(image="vllm/vllm-openai:latest"), "can change"),
    ("no tag", lambda o: container(o).update(image="vllm/vllm-openai"), "can change"),
    (
        "model image without a tag",
        lambda o: pod(o)["volumes"].append({"name": "m2", "image": {"reference": "model"}}),
        "can change",
    ),
    (
        "a Secret in the manifests",
        lambda o: o.append({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "key"}}),
        "created by hand",
    ),
    (
        "a key in the open",
        lambda o: container(o)["env"].append({"name": "HF_TOKEN", "value": "hf_x"}),
        "HF_TOKEN must come from a Secret",
    ),
    (
        "named keys outside a Secret",
        lambda o: container(o)["env"].append(
            {"name": "TUNELINE_KEYS_FILE", "value": "/model/keys.toml"}
        ),
        "TUNELINE_KEYS_FILE is /model/keys.toml; expected a file of a mounted Secret",
    ),
    (
        "requests recorded to no claim",
        lambda o: container(o)["env"].append(
            {"name": "TUNELINE_RECORDING", "value": '{"folder": "/tmp/recorded"}'}
        ),
        "TUNELINE_RECORDING names /tmp/recorded; expected the mount of a claim",
    ),
    (
        "value and valueFrom",
        lambda o: env(o, "VLLM_API_KEY").update(value="x"),
        "exactly one of value and valueFrom",
    ),
    ("a key as an argument", with_args("--api-key", "x"), "--api-key shows a key"),
    (
        "no key",
        lambda o: container(o)["env"].remove(env(o, "VLLM_API_KEY")),
        "VLLM_API_KEY is not set",
    ),
    ("host network", lambda o: pod(o).update(hostNetwork=True), "hostNetwork is not allowed"),
    (
        "token mounted",
        lambda o: pod(o, "Job").pop("automountServiceAccountToken"),
        "Job/support-tickets-load-test: automountServiceAccountToken",
    ),
    ("service links", lambda o: pod(o).pop("enableServiceLinks"), "enableServiceLinks"),
    ("no seccomp", lambda o: pod(o)[SECURITY].pop("seccompProfile"), "seccompProfile"),
    ("root", lambda o: pod(o)[SECURITY].update(runAsUser=0), "other than root"),
    (
        "a label is missing",
        lambda o: one(o, "HTTPRoute")["metadata"]["labels"].pop("app.kubernetes.io/version"),
        "HTTPRoute/support-tickets-model-server: the label app.kubernetes.io/version is not set",
    ),
    (
        "a long name",
        lambda o: one(o, "Service")["metadata"].update(name="s" * 64),
        "the name has 64 characters",
    ),
    (
        "a long label",
        lambda o: one(o, "Service")["metadata"]["labels"].update({NAME: "s" * 64}),
        f"the label {NAME} has 64 characters",
    ),
    (
        "an empty list",
        lambda o: spec(o, "NetworkPolicy").update(egress=[]),
        "spec.egress is an empty list",
    ),
    (
        "more than an annotation takes",
        lambda o: one(o, "ConfigMap")["data"].update({"a.html": "<p>&</p>" * 10_000}),
        "`kubectl apply` would keep a copy of",
    ),
    (
        "a folder by subPath",
        lambda o: container(o)["volumeMounts"][0].update(subPath="tickets"),
        "volume 'model' is mounted by subPath",
    ),
    (
        "no limit of the disk",
        lambda o: container(o)["resources"]["limits"].pop("ephemeral-storage"),
        "has no ephemeral-storage limit",
    ),
    (
        "a request above its limit",
        lambda o: container(o)["resources"]["limits"].update(cpu="2"),
        "container vllm requests 4 of cpu; its limit is 2",
    ),
    (
        "less disk than the folders",
        lambda o: container(o)["resources"]["limits"].update({"ephemeral-storage": "10Gi"}),
        "the limit of ephemeral-storage is 10 GiB; its emptyDirs may hold 11 GiB",
    ),
    (
        "a folder without a limit",
        lambda o: volume(o, "cache")["emptyDir"].clear(),
        "volume cache has no sizeLimit",
    ),
    (
        "the default account",
        lambda o: pod(o, "Job").pop("serviceAccountName"),
        "Job/support-tickets-load-test: runs as `default`",
    ),
    (
        "a mesh guesses",
        lambda o: spec(o, "Service")["ports"][0].pop("appProtocol"),
        "port 8000 has no appProtocol",
    ),
    (
        "budget that holds up a drain",
        lambda o: spec(o, "PodDisruptionBudget").pop("unhealthyPodEvictionPolicy"),
        "unhealthyPodEvictionPolicy must be AlwaysAllow",
    ),
    (
        "a drain as a result",
        lambda o: spec(o, "Job")["podFailurePolicy"]["rules"].pop(0),
        "must Ignore on DisruptionTarget",
    ),
    (
        "a drain that starts one of several load pods again",
        lambda o: spec(o, "Job").update(completions=4, parallelism=4),
        "must FailJob on DisruptionTarget",
    ),
    (
        "an exit code without a name",
        lambda o: exit_codes(o).update(values=[9]),
        "does not name the exit codes [6]",
    ),
    (
        "exit codes of another container",
        lambda o: exit_codes(o).update(containerName="main"),
        "podFailurePolicy names main; it has ['load-test']",
    ),
    (
        "fewer load pods at once",
        lambda o: spec(o, "Job").update(completionMode="Indexed", completions=4, parallelism=2),
        "parallelism 2 differs from completions 4",
    ),
    (
        "a load pod with a long name",
        lambda o: (
            spec(o, "Job").update(completionMode="Indexed", completions=256, parallelism=256),
            one(o, "Job")["metadata"].update(name="j" * 60),
        ),
        "has 64 characters; a pod's may have 63",
    ),
    (
        "a log of two streams",
        lambda o: container(o, "Job")["env"].pop(1),
        "TUNELINE_POD_MESSAGE is not set",
    ),
    (
        "a hung server that drains",
        lambda o: container(o)["livenessProbe"].update(terminationGracePeriodSeconds=60),
        "livenessProbe needs a terminationGracePeriodSeconds below 60",
    ),
    (
        "a hung server that drains by default",
        lambda o: container(o)["livenessProbe"].pop("terminationGracePeriodSeconds"),
        "livenessProbe needs a terminationGracePeriodSeconds below 60",
    ),
    (
        "a CPU that is asked to hurry",
        lambda o: container(o)["resources"]["limits"].pop("nvidia.com/gpu"),
        "readinessProbe allows 3 s; a CPU under load needs 5 s",
    ),
    (
        "verified before it is copied",
        lambda o: pod(o)["initContainers"].append({"name": "fetch-model"}),
        "expected verify-model as the last",
    ),
    (
        "another folder is verified",
        lambda o: pod(o)["initContainers"][0].update(args=["/model/other"]),
        "verify-model reads ['/model/other']; the server reads",
    ),
    (
        "a key that the manifests bring themselves",
        lambda o: volume(o, "release-key").update(volume(o, "release-signature"), name=KEY_VOLUME),
        "the key is in ConfigMap/support-tickets-release-signature-",
    ),
    (
        "a key that is not mounted",
        lambda o: pod(o)["initContainers"][0]["volumeMounts"].remove(
            {"name": "release-key", "mountPath": "/release-key", "readOnly": True}
        ),
        "verify-model reads --key /release-key/release.pub, and mounts nothing there",
    ),
    (
        "a variable that is not set",
        lambda o: container(o)["args"].append("--x=$(NAME)"),
        "'--x=$(NAME)' refers to the variable NAME, which is not set before",
    ),
    (
        "a variable that is set later",
        lambda o: container(o)["env"].insert(0, {"name": "FIRST", "value": "$(HOME)"}),
        "'$(HOME)' refers to the variable HOME, which is not set before",
    ),
    (
        "a metric that no server has",
        lambda o: trigger(o).update(
            query='sum(vllm:num_requests{namespace="tuneline",service='
            '"support-tickets-model-server"})'
        ),
        "no server of ours shows the metric vllm:num_requests",
    ),
    (
        "a query without labels",
        lambda o: trigger(o).update(query="sum(up)"),
        "selects no series",
    ),
    (
        "another server's metrics",
        lambda o: trigger(o).update(query='sum(up{namespace="tuneline",service="other"})'),
        "up is asked of service ('other', 'tuneline')",
    ),
    (
        "a missing metric as no load",
        lambda o: trigger(o).pop("ignoreNullValues"),
        'trigger in-flight needs ignoreNullValues "false"',
    ),
    (
        "an autoscaler without a target",
        lambda o: spec(o, "ScaledObject")["scaleTargetRef"].update(name="model-server"),
        "scales Deployment/model-server, which is not in the manifests",
    ),
    (
        "two sources of the number of pods",
        lambda o: spec(o).update(replicas=2),
        "has replicas, so that an apply takes back what scales it",
    ),
    ("two autoscalers", twins, "scale one Deployment"),
    (
        "KEDA's own name",
        lambda o: (
            one(o, "ScaledObject")["metadata"].update(name="s" * 55),
            spec(o, "ScaledObject").pop("advanced"),
        ),
        f"its autoscaler keda-hpa-{'s' * 55} has 64 characters",
    ),
    (
        "a limit that hides the load from KEDA",
        lambda o: env(o, "TUNELINE_SETTINGS").update(value='{"max_in_flight": 2}'),
        "refuses requests above 2 in flight, and a pod is added above 2.86",
    ),
    (
        "a limit that hides the load from an HPA",
        hpa_above_the_limit,
        "HorizontalPodAutoscaler/support-tickets-model-server: Deployment/"
        "support-tickets-model-server refuses requests above 4 in flight",
    ),
    ("no pods by HPA", lambda o: hpa(o, minReplicas=0), "minReplicas 0 needs a feature gate"),
    ("HPA's metric", lambda o: hpa(o, metric="gpu"), "shows the metric gpu"),
    (
        "a route that cuts streams",
        lambda o: spec(o, "HTTPRoute")["rules"][0].pop("timeouts"),
        "timeouts.request must be 0s",
    ),
    (
        "a route's port",
        lambda o: spec(o, "HTTPRoute")["rules"][0].update(
            backendRefs=[{"name": "support-tickets-model-server", "port": 80}]
        ),
        "port 80 is not one of [8000]",
    ),
    (
        "a route to nowhere",
        lambda o: spec(o, "HTTPRoute")["rules"][0]["backendRefs"][0].update(name="model-server"),
        "none of its backends is in the manifests",
    ),
    (
        "the alpha pool",
        lambda o: one(o, "InferencePool").update(apiVersion="inference.networking.x-k8s.io/v1"),
        "is not served; expected inference.networking.k8s.io/v1",
    ),
    (
        "a pool without pods",
        lambda o: spec(o, "InferencePool")["selector"]["matchLabels"].update({NAME: "x"}),
        "InferencePool/support-tickets-model-server: selector",
    ),
    (
        "a pool's port",
        lambda o: spec(o, "InferencePool")["targetPorts"][0].update(number=80),
        "port 80 is not a port of Deployment",
    ),
    (
        "seccomp off in the container",
        lambda o: container(o)[SECURITY].update(seccompProfile={"type": "Unconfined"}),
        "container vllm: seccompProfile",
    ),
    ("root in the container", lambda o: container(o)[SECURITY].update(runAsUser=0), "not run as"),
    (
        "escalation",
        lambda o: container(o)[SECURITY].pop("allowPrivilegeEscalation"),
        "allowPrivilegeEscalation must be false",
    ),
    ("privileged", lambda o: container(o)[SECURITY].update(privileged=True), "privileged"),
    (
        "capabilities kept",
        lambda o: container(o)[SECURITY].pop("capabilities"),
        "must drop ALL capabilities",
    ),
    (
        "capability added",
        lambda o: container(o)[SECURITY]["capabilities"].update(add=["SYS_NICE"]),
        "must add no capability",
    ),
    (
        "writable root",
        lambda o: container(o, "Job")[SECURITY].update(readOnlyRootFilesystem=False),
        "container load-test: readOnlyRootFilesystem",
    ),
    (
        "host path",
        lambda o: pod(o)["volumes"].append({"name": "disk", "hostPath": {"path": "/"}}),
        "is not one allowed type",
    ),
    (
        "two volume types",
        lambda o: pod(o)["volumes"][0].update(image={"reference": "m:1"}),
        "is not one allowed type",
    ),
    (
        "mount without a volume",
        lambda o: pod(o)["volumes"].pop(),
        "is mounted but not declared",
    ),
    (
        "no /dev/shm",
        lambda o: container(o)["volumeMounts"].pop(),
        "vLLM writes to /dev/shm",
    ),
    (
        "another model folder",
        replaced("/model/support-tickets-0123456789ab", "/models/x"),
        "must be one folder of a read-only mount",
    ),
    (
        "writable model",
        lambda o: container(o)["volumeMounts"][0].update(readOnly=False),
        "must be one folder of a read-only mount",
    ),
    ("no requests", lambda o: container(o)["resources"].pop("requests"), "requests no cpu"),
    ("no limit", lambda o: container(o)["resources"].pop("limits"), "has no memory limit"),
    ("fewer GPUs than ranks", with_args("--tensor-parallel-size=2"), "told to use 2 GPU(s)"),
    ("no KV space", on_a_cpu(None), "VLLM_CPU_KVCACHE_SPACE (GiB) must be set"),
    ("too much KV space", on_a_cpu("24"), "leaves no room in the memory limit"),
    (
        "surge",
        lambda o: spec(o)["strategy"]["rollingUpdate"].update(maxSurge=1),
        "must free an accelerator",
    ),
    ("default strategy", lambda o: spec(o).pop("strategy"), "must free an accelerator"),
    (
        "short grace",
        lambda o: pod(o).update(terminationGracePeriodSeconds=59),
        "terminationGracePeriodSeconds 59 is below 60",
    ),
    (
        "longer drain",
        with_args("--shutdown-timeout", "31"),
        "terminationGracePeriodSeconds 60 is below 61",
    ),
    ("no drain", without_arg("--shutdown-timeout"), "stalls its streams"),
    ("no preStop", lambda o: container(o).pop("lifecycle"), "without a preStop sleep"),
    (
        "start-up budget below vLLM's patience",
        lambda o: container(o)["startupProbe"].update(failureThreshold=119),
        "the startup probe allows 595 s",
    ),
    (
        "start-up budget beyond vLLM's patience",
        lambda o: container(o)["startupProbe"].update(failureThreshold=200),
        "the startup probe allows 1000 s",
    ),
    ("no startup probe", lambda o: container(o).pop("startupProbe"), "startupProbe asks None"),
    (
        "rollout called failed too early",
        lambda o: spec(o).update(progressDeadlineSeconds=600),
        "calls a rollout failed",
    ),
    (
        "a probe that needs the key",
        lambda o: container(o)["readinessProbe"]["httpGet"].update(path="/v1/models"),
        "readinessProbe asks /v1/models; expected /ready",
    ),
    (
        "liveness that fails in a drain",
        lambda o: container(o)["livenessProbe"]["httpGet"].update(path="/ready"),
        "livenessProbe asks /ready; expected /health",
    ),
    (
        "a probe's port",
        lambda o: container(o)["livenessProbe"]["httpGet"].update(port="admin"),
        "asks port 'admin'",
    ),
    (
        "liveness as strict as readiness",
        lambda o: container(o)["livenessProbe"].update(failureThreshold=1),
        "liveness must be laxer",
    ),
    (
        "liveness less patient than readiness",
        lambda o: container(o)["livenessProbe"].update(timeoutSeconds=1),
        "liveness must be laxer",
    ),
    (
        "not vLLM",
        lambda o: container(o).update(command=["python", "app.py"]),
        "no container's command begins with `vllm serve`",
    ),
    ("loopback", replaced(HOST, "127.0.0.1"), "--host must be"),
    ("another port", replaced("8000", "9000"), "is not among its ports"),
    ("no middleware", without_arg("--middleware"), "/ready does not exist"),
    ("no name", without_arg("--served-model-name"), "--served-model-name is not set"),
    (
        "another digest",
        lambda o: spec(o)["template"]["metadata"]["labels"].update(
            {"tuneline/model-digest": "ffffffffffff"}
        ),
        "expected a name that ends in @ffffffffffff",
    ),
    ("tried again", lambda o: spec(o, "Job").update(backoffLimit=3), "not tried again"),
    ("never ends", lambda o: spec(o, "Job").pop("activeDeadlineSeconds"), "is not set"),
    (
        "another server",
        replaced(
            "--url=http://support-tickets-model-server:8000/v1", "--url=http://other/v1", "Job"
        ),
        "http://other/v1 is not a Service of these manifests",
    ),
    (
        "another model",
        replaced("--model=support-tickets@0123456789ab", "--model=base", "Job"),
        "model 'base' is not served",
    ),
]  # fmt: skip


@pytest.mark.parametrize(
    ("mutation", "expected"), [entry[1:] for entry in BROKEN], ids=[entry[0] for entry in BROKEN]
)
def test_a_broken_manifest_is_found(deployed: Objects, mutation: Mutation, expected: str) -> None:
    assert check_manifests(deployed) == []
    mutation(deployed)
    found = check_manifests(deployed)
    assert any(expected in problem for problem in found), found


def test_every_problem_that_can_be_reported_is_reported_above(deployed: Objects) -> None:
    """No check without a test that breaks it: each `yield` of a rule runs for one of BROKEN."""
    broken = ((copy.deepcopy(deployed), mutation) for _, mutation, _ in BROKEN)
    unreached, number = unreached_yields(MODULES, broken)
    assert unreached == []
    assert number > 40


def test_flags_are_read_as_vllm_reads_them() -> None:
    assert flags(["/model", "--served-model-name", "a", "b", "--port=8000", "--enforce_eager"]) == {
        "": ["/model"],
        "--served-model-name": ["a", "b"],
        "--port": ["8000"],
        "--enforce-eager": [],
    }
