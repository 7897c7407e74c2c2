"""Rules on the pods of a training: an accident is tried again, a checkpoint is not lost."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from k8s.rules.objects import LABEL_LENGTH, Object, Pod, env, flags, of_kind, pods
from tuneline.core.training_limits import MEASUREMENT_S, TRAINING_EXIT_MARGIN_S

MESSAGE = "TUNELINE_POD_MESSAGE"
MISTAKES = {2, 3, 6, 7, 8}
"""Exit codes that would be the same in every pod: see tuneline/core/errors.py."""
GROUP = ("MASTER_ADDR", "MASTER_PORT", "WORLD_SIZE", "RANK", "NODE_RANK")


def trainings(objects: Sequence[Object]) -> list[tuple[Pod, Mapping[str, Any]]]:
    """Return the pods that train or search, each with the container that does."""
    return [
        (pod, container)
        for pod in pods(objects)
        for container in pod.spec.get("containers", [])
        if container.get("command") in (["tuneline", "train"], ["tuneline", "search"])
    ]


def _job(pod: Pod) -> Mapping[str, Any]:
    """Return the specification of the Job that makes a pod."""
    return pod.job if pod.job is not None else pod.owner["spec"]


def _failures(objects: Sequence[Object]) -> Iterator[str]:
    for pod, container in trainings(objects):
        job = _job(pod)
        if pod.spec.get("restartPolicy") != "Never":
            yield f"{pod.where}: restartPolicy must be Never; podFailurePolicy asks for it"
        drained = "Ignore" if pod.owner["kind"] == "Job" else "FailJob"
        rules = job.get("podFailurePolicy", {}).get("rules", [])
        kinds = [
            rule["action"]
            for rule in rules
            for condition in rule.get("onPodConditions", [])
            if condition["type"] == "DisruptionTarget"
        ]
        if kinds != [drained] or "onPodConditions" not in rules[0]:
            yield (
                f"{pod.where}: podFailurePolicy must first {drained} on DisruptionTarget, the "
                "drain of a node"
            )
        codes = {
            code
            for rule in rules
            if rule["action"] == "FailJob"
            for code in rule.get("onExitCodes", {}).get("values", [])
        }
        if codes != MISTAKES:
            yield (
                f"{pod.where}: podFailurePolicy ends the Job on {sorted(codes)}; expected "
                f"{sorted(MISTAKES)}: the other codes may differ in another pod"
            )
        for rule in rules:
            name = rule.get("onExitCodes", {}).get("containerName", container["name"])
            if name != container["name"]:
                yield f"{pod.where}: podFailurePolicy names {name}; expected {container['name']}"
        if "activeDeadlineSeconds" not in job:
            yield f"{pod.where}: activeDeadlineSeconds is not set"
        if MESSAGE not in env(container):
            yield f"{pod.where}: {MESSAGE} is not set; the pod would not name its error"


def _checkpoints(objects: Sequence[Object]) -> Iterator[str]:
    """The grace period covers the checkpoint, and its folder outlives the pod."""
    for pod, container in trainings(objects):
        grace_s = pod.spec.get("terminationGracePeriodSeconds", 30)
        least_s = MEASUREMENT_S + TRAINING_EXIT_MARGIN_S
        if grace_s <= least_s:
            yield (
                f"{pod.where}: terminationGracePeriodSeconds {grace_s} is not above {least_s:g}: a "
                "measurement and the exit; the checkpoint needs time too"
            )
        args = flags(container.get("args", []))
        mounts = {mount["mountPath"]: mount for mount in container.get("volumeMounts", [])}
        folder = (args.get("--runs-dir") or ["runs"])[-1]
        root = "/" + folder.lstrip("/").partition("/")[0]
        mount = mounts.get(root)
        if mount is None or mount.get("readOnly"):
            yield f"{pod.where}: --runs-dir {folder} is not below a writable mount"
            continue
        (volume,) = (v for v in pod.spec["volumes"] if v["name"] == mount["name"])
        is_shared = container["command"][1] == "search" or _number(pod) > 1
        if "persistentVolumeClaim" not in volume and (is_shared or "--push-to" not in args):
            yield (
                f"{pod.where}: --runs-dir {folder} is lost with the pod; expected a claim"
                + ("" if is_shared else " or --push-to")
            )


def _number(pod: Pod) -> int:
    return int(_job(pod).get("completions", 1))


def _groups(objects: Sequence[Object]) -> Iterator[str]:
    """Pods that belong together begin together and find one another."""
    for pod, container in trainings(objects):
        job, number = _job(pod), _number(pod)
        if number > 1 and (
            job.get("parallelism") != number or job.get("completionMode") != "Indexed"
        ):
            yield (
                f"{pod.where}: parallelism {job.get('parallelism')} of {number} completions; "
                "expected an Indexed Job whose pods all run at one time"
            )
        name = pod.owner["metadata"]["name"]
        # A controller adds a hyphen and five characters to the name of a pod.
        longest = f"{name}-{number - 1}" if pod.job is None else f"{name}-node-0-{number - 1}-xxxxx"
        if len(longest) > LABEL_LENGTH:
            yield (
                f"{pod.where}: {longest} has {len(longest)} characters; a pod's may have "
                f"{LABEL_LENGTH}"
            )
        if pod.job is None:
            continue
        told = env(container)
        missing = [variable for variable in GROUP if variable not in told]
        if missing:
            yield f"{pod.where}: {', '.join(missing)}: not set; the pods would not find one another"
            continue
        network = pod.group.get("network", {})
        first = f"{name}-{pod.role}-0-0.{network.get('subdomain', name)}"
        if told["MASTER_ADDR"].get("value") != first or not network.get("enableDNSHostnames"):
            yield (
                f"{pod.where}: MASTER_ADDR is {told['MASTER_ADDR'].get('value')}; expected "
                f"{first}, the first pod in the headless Service"
            )
        if told["WORLD_SIZE"].get("value") != str(number):
            yield (
                f"{pod.where}: WORLD_SIZE is {told['WORLD_SIZE'].get('value')}; expected {number}, "
                "the number of pods"
            )


def _runtimes(objects: Sequence[Object]) -> Iterator[str]:
    for item in of_kind(objects, "TrainJob"):
        name = item["spec"]["runtimeRef"]["name"]
        hit = [r for r in of_kind(objects, "TrainingRuntime") if r["metadata"]["name"] == name]
        if not hit:
            yield f"TrainJob/{item['metadata']['name']}: TrainingRuntime/{name} is not here"
        for runtime in hit:
            own = item["spec"].get("trainer", {}).get("numNodes", 1)
            given = runtime["spec"].get("mlPolicy", {}).get("numNodes", 1)
            if own != given:
                yield (
                    f"TrainJob/{item['metadata']['name']}: has {own} hosts; its TrainingRuntime "
                    f"is written for {given}"
                )


RULES = (_failures, _checkpoints, _groups, _runtimes)
