"""Ask a server in the cluster, through a port-forward."""

from __future__ import annotations

import base64
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from k8s.cluster.kubectl import Cluster, Tunnel, call, forward_port
from k8s.cluster.pods import is_ready
from k8s.cluster.rollout import Rollout, read_rollout
from k8s.config import PORT
from k8s.render.facts import server_name
from tuneline.core.errors import ServerError, TunelineError
from tuneline.core.progress import logger

NUM_TUNNELS = 3
"""A port-forward that is lost says nothing about the server; the check begins again."""
PAUSE_S = 0.2
"""A tunnel that breaks takes a moment to end."""

Check = Callable[[str], None]
"""`check(url)`: raise a TunelineError if the server behind the tunnel is not the released one."""


def check_server(cluster: Cluster, rollout: Rollout, check: Check) -> None:
    """Run a check through a port-forward to a new pod.

    Raises:
        TunelineError: The check failed, or three tunnels were lost.
    """
    if rollout.wanted == 0:
        logger.warning("the autoscaler keeps no pod; the server is not asked")
        return
    target = _target(cluster, rollout)
    lost = ""
    for _ in range(NUM_TUNNELS):
        if lost:
            logger.info("  %s; the server is asked again", lost)
        lost = _check_once(cluster, target, check)
        if not lost:
            return
    raise ServerError(f"{lost}; the server was not checked")


def _check_once(cluster: Cluster, target: str, check: Check) -> str:
    """Run the check, and return why its tunnel was lost; empty if the check holds.

    Raises:
        TunelineError: The check failed.
    """
    with ExitStack() as stack:
        try:
            tunnel = stack.enter_context(forward_port(cluster, target, PORT))
        except ServerError as error:
            return error.message
        try:
            check(tunnel.url)
        except TunelineError as error:
            time.sleep(PAUSE_S)
            if not tunnel.is_lost():
                raise
            return f"kubectl port-forward {target} was lost: {tunnel.words()} ({error.message})"
    return ""


@contextmanager
def open_tunnel(cluster: Cluster, run: str) -> Iterator[Tunnel]:
    """Open a port-forward to a ready pod of a run's server, and close it with the block.

    Raises:
        ServerError: The run has no ready pod, or the tunnel does not open.
    """
    rollout = read_rollout(cluster, server_name(run), run)
    if rollout is None:
        raise ServerError(f"{cluster.where}: run {run} is not deployed")
    with forward_port(cluster, _target(cluster, rollout), PORT) as tunnel:
        yield tunnel


def _target(cluster: Cluster, rollout: Rollout) -> str:
    pods = [pod for pod in rollout.newest_pods() if is_ready(pod)]
    if not pods:
        raise ServerError(f"{cluster.where}: the newest version has no ready pod to ask")
    return f"pod/{pods[0]['metadata']['name']}"


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
