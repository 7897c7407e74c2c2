"""Whether a gateway sends requests by a route: the status that its controller writes."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from k8s.cluster.kubectl import Cluster, get
from k8s.cluster.shares import ROUTES
from tuneline.core.errors import ServerError
from tuneline.core.progress import logger

ACCEPT_S = 120.0
"""A controller in the cluster writes the status of a route within seconds, one of a cloud later."""
POLL_S = 1.0
TOLD = ("Accepted", "ResolvedRefs")
NOT_ALLOWED = "NotAllowedByListeners"


def route_problem(route: Mapping[str, Any]) -> str:
    """Return why a gateway does not send by a route as it is now; empty if each gateway does."""
    parents = route.get("status", {}).get("parents", [])
    if not parents:
        return "no gateway has taken it; expected a Gateway of that name with a controller"
    generation = route["metadata"].get("generation", 0)
    problems = []
    for parent in parents:
        gateway = f"gateway {parent['parentRef']['name']}"
        for one in parent.get("conditions", []):
            if one["type"] not in TOLD:
                continue
            if one["status"] != "True":
                problems.append(f"{gateway}: {one.get('reason')}: {one.get('message', '')}")
            elif one.get("observedGeneration", generation) < generation:
                problems.append(f"{gateway}: has not seen the last change")
    return "; ".join(dict.fromkeys(problems))


def require_accepted(cluster: Cluster, server: str) -> None:
    """Return when each gateway of a server's route sends by it.

    Until then, the weights of the route say nothing about the requests.

    Raises:
        ServerError: A gateway does not accept the route in time.
    """
    until_s = time.monotonic() + ACCEPT_S
    while problem := route_problems(get(cluster, ROUTES, server)):
        if time.monotonic() > until_s:
            raise ServerError(
                f"HTTPRoute/{server}: after {ACCEPT_S:g} s: {problem}", hint=_hint(cluster, problem)
            )
        time.sleep(POLL_S)


def warn_of_route(cluster: Cluster, server: str) -> None:
    """Log why no request comes through the gateway, if the server has a route and none does."""
    try:
        problem = route_problems(get(cluster, ROUTES, server))
    except ServerError:
        return
    if problem:
        logger.warning("HTTPRoute/%s: %s", server, problem)
        logger.warning("  no request comes through the gateway. %s", _hint(cluster, problem))


def route_problems(routes: Sequence[Mapping[str, Any]]) -> str:
    """Return why no request comes by a server's route; empty if it has none."""
    return "; ".join(filter(None, map(route_problem, routes)))


def _hint(cluster: Cluster, problem: str) -> str:
    if NOT_ALLOWED in problem:
        return (
            "The Gateway's listener must let the namespace in: "
            f"allowedRoutes.namespaces.from: Selector, with kubernetes.io/metadata.name: "
            f"{cluster.namespace}"
        )
    return f"Try: kubectl describe -n {cluster.namespace} httproutes"
