"""Rules on the container that runs vLLM: how it starts, is probed, drains, and what it is told."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from k8s.rules.objects import (
    DIGEST_LABEL,
    KEY_VOLUME,
    RECORDING,
    Object,
    Pod,
    env,
    flags,
    num_gpus,
    of_kind,
    quantity,
    ref,
    servers,
)
from tuneline.core.vllm_limits import VLLM_EXIT_MARGIN_S

# vLLM counts its own patience from when its imports are done; these may take so long.
IMPORTS_S = 120
PATIENCE = "VLLM_ENGINE_READY_TIMEOUT_S"


def _rollout(objects: Sequence[Object]) -> Iterator[str]:
    for pod, _ in servers(objects):
        strategy = pod.owner["spec"].get("strategy", {})
        rolling = strategy.get("rollingUpdate", {})
        if pod.owner["kind"] != "Deployment":
            rolling = pod.owner["spec"].get("rolloutStrategy", {})
            rolling = rolling.get("rollingUpdateConfiguration", rolling)
        surge, unavailable = rolling.get("maxSurge"), rolling.get("maxUnavailable")
        # The defaults of 25 % ask for a second accelerator and give up an answer at once.
        frees_first = surge == 0 and unavailable not in (None, 0, "0%")
        adds_first = unavailable == 0 and surge not in (None, 0, "0%")
        if strategy.get("type") != "Recreate" and not (frees_first or adds_first):
            yield (
                f"{pod.where}: a rollout must free an accelerator before it asks for one "
                "(maxSurge 0, maxUnavailable 1), or the other way round (1, 0)"
            )


def _grace_period(objects: Sequence[Object]) -> Iterator[str]:
    for pod, container in servers(objects):
        sleep_s = _sleep_s(container.get("lifecycle", {}).get("preStop", {}))
        args = flags(container.get("args", []))
        if not sleep_s:
            yield f"{pod.where}: without a preStop sleep, requests reach a server that drains"
        drain_s = int((args.get("--shutdown-timeout") or ["0"])[-1])
        if not drain_s:
            yield f"{pod.where}: without --shutdown-timeout, vLLM stalls its streams on SIGTERM"
        needed = sleep_s + drain_s + VLLM_EXIT_MARGIN_S
        grace = pod.spec.get("terminationGracePeriodSeconds", 30)
        if grace < needed:
            yield (
                f"{pod.where}: terminationGracePeriodSeconds {grace} is below {needed}: "
                f"preStop + --shutdown-timeout + {VLLM_EXIT_MARGIN_S}"
            )


def _sleep_s(pre_stop: Mapping[str, Any]) -> int:
    """Return the seconds that a preStop sleeps, by the kubelet or by a command."""
    command = pre_stop.get("exec", {}).get("command", [])
    if len(command) == 2 and command[0].endswith("sleep"):
        return int(command[1])
    return int(pre_stop.get("sleep", {}).get("seconds", 0))


def _budget(probe: Mapping[str, Any]) -> int:
    return int(probe.get("periodSeconds", 10)) * int(probe.get("failureThreshold", 3))


def _startup(objects: Sequence[Object]) -> Iterator[str]:
    for pod, container in servers(objects):
        budget = _budget(container.get("startupProbe", {}))
        patience = int(env(container).get(PATIENCE, {}).get("value", 600))
        if not patience <= budget <= patience + IMPORTS_S:
            yield (
                f"{pod.where}: the startup probe allows {budget} s; expected "
                f"{PATIENCE} ({patience}) to {IMPORTS_S} s more"
            )
        if pod.owner["kind"] != "Deployment":
            continue
        deadline = pod.owner["spec"].get("progressDeadlineSeconds", 600)
        needed = budget + pod.spec.get("terminationGracePeriodSeconds", 30)
        if deadline <= needed:
            yield (
                f"{pod.where}: progressDeadlineSeconds {deadline} calls a rollout failed that may "
                f"still start; expected more than {needed}"
            )


def _probes(objects: Sequence[Object]) -> Iterator[str]:
    routes = {"startupProbe": "/health", "readinessProbe": "/ready", "livenessProbe": "/health"}
    for pod, container in servers(objects):
        for name, route in routes.items():
            asked = container.get(name, {}).get("httpGet", {})
            if asked.get("path") != route:
                yield f"{pod.where}: {name} asks {asked.get('path')}; expected {route}"
            if asked.get("port") not in pod.ports and asked.get("port") not in pod.ports.values():
                yield (
                    f"{pod.where}: {name} asks port {asked.get('port')!r}; expected one of "
                    f"{pod.ports}"
                )
        ready, alive = container.get("readinessProbe", {}), container.get("livenessProbe", {})
        laxer = _budget(alive) > _budget(ready)
        laxer &= alive.get("timeoutSeconds", 1) >= ready.get("timeoutSeconds", 1)
        if not laxer:
            yield f"{pod.where}: liveness must be laxer than readiness; a busy server is not dead"
        grace = pod.spec.get("terminationGracePeriodSeconds", 30)
        if not alive.get("terminationGracePeriodSeconds", grace) < grace:
            yield (
                f"{pod.where}: livenessProbe needs a terminationGracePeriodSeconds below {grace}; "
                "a hung server would get the whole drain"
            )
        gpus = num_gpus(container.get("resources", {}).get("limits", {}))
        if not gpus and ready.get("timeoutSeconds", 1) < 5:
            yield (
                f"{pod.where}: readinessProbe allows {ready.get('timeoutSeconds', 1)} s; a CPU "
                "under load needs 5 s, or its clients are refused instead of queued"
            )


def _process(objects: Sequence[Object]) -> Iterator[str]:
    """Every other rule here looks only at servers, so each Deployment must be one."""
    found = {pod.where for pod, _ in servers(objects)}
    for item in of_kind(objects, "Deployment"):
        if ref(item) not in found:
            yield f"{ref(item)}: no container's command begins with `vllm serve`"


def _arguments(objects: Sequence[Object]) -> Iterator[str]:
    for pod, container in servers(objects):
        args = flags(container.get("args", []))
        if args.get("--host") != ["0.0.0.0"]:  # noqa: S104 (the pod's own network)
            yield f"{pod.where}: --host must be 0.0.0.0; otherwise the Service cannot reach it"
        if (args.get("--port") or ["8000"])[-1] not in map(str, pod.ports.values()):
            yield f"{pod.where}: --port {args.get('--port')} is not among its ports {pod.ports}"
        if not any(name.startswith("serving.middleware.") for name in args.get("--middleware", [])):
            yield f"{pod.where}: without --middleware serving.middleware..., /ready does not exist"


def _digests(objects: Sequence[Object]) -> Iterator[str]:
    """A rendered server says which artifact it serves, in its labels and in its model's names."""
    for pod, container in servers(objects):
        digest = pod.labels.get(DIGEST_LABEL)
        names = flags(container.get("args", [])).get("--served-model-name", [])
        if not names:
            yield f"{pod.where}: --served-model-name is not set; clients would ask for a path"
        if digest is not None and not any(name.endswith(f"@{digest}") for name in names):
            yield f"{pod.where}: serves {names}; expected a name that ends in @{digest}"


def _key(objects: Sequence[Object]) -> Iterator[str]:
    for pod, container in servers(objects):
        if "VLLM_API_KEY" not in env(container):
            yield f"{pod.where}: VLLM_API_KEY is not set; anybody could use the server"


def _mounts(objects: Sequence[Object]) -> Iterator[str]:
    for pod, container in servers(objects):
        mounts = {mount["mountPath"]: mount for mount in container.get("volumeMounts", [])}
        for path in ("/tmp", "/dev/shm", "/cache"):  # noqa: S108 (paths in the container)
            if path not in mounts:
                yield f"{pod.where}: vLLM writes to {path}; mount an emptyDir there"
        model = flags(container.get("args", []))[""]
        root = "/" + model[0].lstrip("/").partition("/")[0] if len(model) == 1 else ""
        mount = mounts.get(root)
        if mount is None or not mount.get("readOnly"):
            yield f"{pod.where}: the model {model} must be one folder of a read-only mount"


def _inits(objects: Sequence[Object]) -> Iterator[str]:
    """The init container verifies the folder that is served, after it was copied."""
    for pod, container in servers(objects):
        inits = [entry["name"] for entry in pod.spec.get("initContainers", [])]
        if "verify-model" not in inits:
            continue
        if inits[-1] != "verify-model":
            yield f"{pod.where}: init containers {inits}; expected verify-model as the last"
        verify = pod.spec["initContainers"][inits.index("verify-model")]
        asked = flags(verify.get("args", []))[""]
        served = flags(container.get("args", []))[""]
        if asked != served:
            yield f"{pod.where}: verify-model reads {asked}; the server reads {served}"
        yield from _trust(objects, pod, verify)


def _trust(objects: Sequence[Object], pod: Pod, verify: Mapping[str, Any]) -> Iterator[str]:
    """The key that a signature is checked with is not a part of the manifests."""
    args = flags(verify.get("args", []))
    if "--signature" not in args:
        return
    mounts = {mount["mountPath"]: mount["name"] for mount in verify.get("volumeMounts", [])}
    for flag in ("--signature", "--key"):
        (path,) = args.get(flag) or [""]
        if path.rpartition("/")[0] not in mounts:
            yield f"{pod.where}: verify-model reads {flag} {path}, and mounts nothing there"
    own = {item["metadata"]["name"] for item in of_kind(objects, "ConfigMap")}
    for volume in pod.spec.get("volumes", []):
        name = volume.get("configMap", {}).get("name")
        if volume["name"] == KEY_VOLUME and name in own:
            yield f"{pod.where}: the key is in ConfigMap/{name} of the same manifests"


def _recording(objects: Sequence[Object]) -> Iterator[str]:
    """Requests are recorded to a claim: any other folder ends with its pod."""
    for pod, container in servers(objects):
        text = env(container).get(RECORDING, {}).get("value")
        if text is None:
            continue
        folder = json.loads(text)["folder"]
        claims = {
            volume["name"]
            for volume in pod.spec.get("volumes", [])
            if "persistentVolumeClaim" in volume
        }
        mounted = {
            mount["mountPath"]
            for mount in container.get("volumeMounts", [])
            if mount["name"] in claims and not mount.get("readOnly")
        }
        if folder not in mounted:
            yield f"{pod.where}: {RECORDING} names {folder}; expected the mount of a claim"


def _capacity(objects: Sequence[Object]) -> Iterator[str]:
    for pod, container in servers(objects):
        limits = container.get("resources", {}).get("limits", {})
        args = flags(container.get("args", []))
        if gpus := num_gpus(limits):
            needed = 1
            for flag in ("--tensor-parallel-size", "--pipeline-parallel-size"):
                needed *= int((args.get(flag) or ["1"])[-1])
            hosts = pod.owner["spec"].get("leaderWorkerTemplate", {}).get("size", 1)
            found = hosts * gpus
            if needed != found:
                who = "pod has" if hosts == 1 else f"{hosts} hosts have"
                yield f"{pod.where}: vLLM is told to use {needed} GPU(s) and the {who} {found}"
        else:
            space = env(container).get("VLLM_CPU_KVCACHE_SPACE", {}).get("value")
            if space is None:
                yield f"{pod.where}: without a GPU, VLLM_CPU_KVCACHE_SPACE (GiB) must be set"
            elif not float(space) * 2**30 < quantity(limits.get("memory", 0)):
                yield (
                    f"{pod.where}: VLLM_CPU_KVCACHE_SPACE {space} GiB leaves no room in the "
                    f"memory limit {limits.get('memory')}"
                )


RULES = (
    _process, _rollout, _grace_period, _startup, _probes, _arguments, _digests, _key,
    _mounts, _inits, _recording, _capacity,
)  # fmt: skip
