"""Ask a server in the cluster, through a port-forward."""

from __future__ import annotations

import base64
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from k8s.cluster.kubectl import Cluster, Tunnel, call, forward_port
from k8s.cluster.pods import is_ready
from k8s.cluster.rollout import Rollout, read_rollout
from k8s.config import PORT
from k8s.render.facts import server_name
from k8s.render.kustomize import INSTANCE_LABEL
from tuneline.core.errors import ServerError, TunelineError
from tuneline.core.progress import logger

NUM_TUNNELS = 3
"""A port-forward that is lost says nothing about the server; the check begins again."""
PAUSE_S = 0.2
"""A tunnel that breaks takes a moment to end."""
MAX_PODS = 8
"""Pods that are asked, at most: a broken node or image shows in one of them."""
PROOF_S = 900.0
"""The limit of the whole proof."""

Check = Callable[[str], None]
"""`check(url)`: raise a TunelineError if the server behind the tunnel is not the released one."""


def check_server(cluster: Cluster, rollout: Rollout, check: Check) -> None:
    """Run a check through a port-forward to each pod of the newest version, at most eight.

    The first pod has the whole time of the proof. A further pod is asked if the time that is left
    is twice that of the slowest pod before.

    Raises:
        TunelineError: The check of a pod failed, three of its tunnels were lost, or it did not
            answer in time.
    """
    if rollout.wanted == 0:
        logger.warning("the autoscaler keeps no pod; the server is not asked")
        return
    names = _ready_names(cluster, rollout)
    until_s = time.monotonic() + PROOF_S
    num_proven, slowest_s = 0, 0.0
    for name in names[:MAX_PODS]:
        begun_s = time.monotonic()
        if num_proven and until_s - begun_s < 2 * slowest_s:
            logger.info("  no further pod is asked: the %g s of the proof are over", PROOF_S)
            break
        if _prove_pod(cluster, rollout, name, check, until_s):
            num_proven += 1
        slowest_s = max(slowest_s, time.monotonic() - begun_s)
    if not num_proven:
        raise ServerError(f"{cluster.where}: {', '.join(names)} went away; no pod was asked")
    logger.info("  proven: %d of %d new pods", num_proven, len(names))


def check_run(cluster: Cluster, run: str, check: Check) -> None:
    """Run a check on the pods of a run's server, as `check_server` does.

    Raises:
        TunelineError: The run is not deployed, or as `check_server` does.
    """
    check_server(cluster, _need_rollout(cluster, run), check)


def _prove_pod(cluster: Cluster, rollout: Rollout, name: str, check: Check, until_s: float) -> bool:
    """Run the check on one pod, and return whether it holds; False if the pod went away."""
    for number in range(1, NUM_TUNNELS + 1):
        lost = _check_once(cluster, f"pod/{name}", check, until_s)
        if not lost:
            return True
        if _is_gone(cluster, rollout, name):
            logger.info("  pod %s went away; it is not asked", name)
            return False
        if number < NUM_TUNNELS:
            logger.info("  %s; the server is asked again", lost)
    raise ServerError(f"{lost}; the server was not checked")


def _check_once(cluster: Cluster, target: str, check: Check, until_s: float) -> str:
    """Run the check, and return why its tunnel was lost; empty if the check holds.

    Raises:
        TunelineError: The check failed, or the time is over.
    """
    with ExitStack() as stack:
        try:
            tunnel = stack.enter_context(forward_port(cluster, target, PORT))
        except ServerError as error:
            return error.message
        # Without its tunnel, every request of the check fails at once.
        timer = threading.Timer(max(0.0, until_s - time.monotonic()), tunnel.end)
        timer.daemon = True
        timer.start()
        stack.callback(timer.cancel)
        try:
            check(tunnel.url)
        except TunelineError as error:
            if time.monotonic() >= until_s:
                raise ServerError(
                    f"{target}: is not proven within {PROOF_S:g} s: {error.message}"
                ) from None
            time.sleep(PAUSE_S)
            if not tunnel.is_lost():
                raise type(error)(f"{target}: {error.message}", hint=error.hint) from error
            return f"kubectl port-forward {target} was lost: {tunnel.words()} ({error.message})"
    return ""


def _is_gone(cluster: Cluster, rollout: Rollout, name: str) -> bool:
    """Return whether a pod was removed, by an autoscaler or a drain."""
    metadata = rollout.deployment["metadata"]
    try:
        now = read_rollout(cluster, metadata["name"], metadata["labels"][INSTANCE_LABEL])
    except ServerError:
        return False
    pods = {pod["metadata"]["name"]: pod for pod in ([] if now is None else now.pods)}
    return name not in pods or "deletionTimestamp" in pods[name]["metadata"]


@contextmanager
def open_tunnel(cluster: Cluster, run: str) -> Iterator[Tunnel]:
    """Open a port-forward to a ready pod of a run's server, and close it with the block.

    Raises:
        ServerError: The run has no ready pod, or the tunnel does not open.
    """
    rollout = _need_rollout(cluster, run)
    name = _ready_names(cluster, rollout)[0]
    with forward_port(cluster, f"pod/{name}", PORT) as tunnel:
        yield tunnel


def _need_rollout(cluster: Cluster, run: str) -> Rollout:
    rollout = read_rollout(cluster, server_name(run), run)
    if rollout is None:
        raise ServerError(f"{cluster.where}: run {run} is not deployed")
    return rollout


def _ready_names(cluster: Cluster, rollout: Rollout) -> list[str]:
    names: list[str] = [pod["metadata"]["name"] for pod in rollout.newest_pods() if is_ready(pod)]
    if not names:
        raise ServerError(f"{cluster.where}: the newest version has no ready pod to ask")
    return names


def read_server_key(cluster: Cluster, deployment: Mapping[str, Any]) -> str | None:
    """Return the API key from the Secret that a Deployment names; None if it names none.

    Raises:
        ServerError: The Secret is not there, or may not be read.
    """
    for container in deployment["spec"]["template"]["spec"]["containers"]:
        for variable in container.get("env", []):
            source = variable.get("valueFrom", {}).get("secretKeyRef")
            if variable["name"] == "VLLM_API_KEY" and source:
                return _read_secret(cluster, source["name"], source["key"])
    return None


def _read_secret(cluster: Cluster, name: str, key: str) -> str:
    path = "jsonpath={.data." + key.replace(".", "\\.") + "}"
    hint = (
        f"The server needs it: kubectl create secret generic {name} --from-file={key}=FILE\n"
        "  Without the right to read it, set VLLM_API_KEY to the key."
    )
    try:
        text = call(cluster, "get", "secret", name, f"--output={path}")
    except ServerError as error:
        raise ServerError(error.message, hint=hint) from None
    if not text:
        raise ServerError(f"{cluster.where}: Secret/{name} has no key {key}", hint=hint)
    return base64.b64decode(text).decode().strip()
