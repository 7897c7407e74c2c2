"""Move a share of the requests to a second run step by step, and back when a check fails."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from k8s.cluster.kubectl import Cluster, Object, apply, get
from k8s.cluster.manifests import Manifests
from k8s.cluster.pods import PATIENCE_S, is_ready
from k8s.cluster.revisions import read_record, without_server_fields
from k8s.cluster.rollout import Rollout, read_rollout
from k8s.cluster.routes import require_accepted
from k8s.cluster.shares import ROUTES, give_share, read_routes, weights_of
from k8s.render.facts import server_name
from k8s.render.kustomize import INSTANCE_LABEL
from k8s.rules.objects import flags, ref
from tuneline.core.errors import ConfigError, ServerError, TunelineError
from tuneline.core.progress import logger

STEPS = (1, 5, 10, 25, 50, 100)
"""Weights on the way to the wished one, in percent."""
OURS = "--selector=app.kubernetes.io/part-of=tuneline"
PAUSE_S = 1.0

StepCheck = Callable[[int], None]
"""`check(weight)`: raise a TunelineError if the canary must not keep this weight."""


def find_stable(cluster: Cluster, canary: str, stable: str | None = None) -> str:
    """Return the run whose route a canary shares: the named one, or the only one.

    Raises:
        ConfigError: There is none, or several.
    """
    routes = get(cluster, ROUTES, OURS)
    runs: list[str] = sorted(item["metadata"]["labels"][INSTANCE_LABEL] for item in routes)
    if stable is not None and stable in runs and stable != canary:
        return stable
    others = [run for run in runs if run != canary]
    if stable is None and len(others) == 1:
        return others[0]
    if not others:
        raise ConfigError(
            f"{cluster.where}: no other run has a route; a canary is a second run, with a name of "
            f"its own, next to the run that has the route",
            hint="Give the first run section k8s.gateway, then: tuneline deploy apply FIRST.yaml",
        )
    named = "several runs have a route" if stable is None else f"--stable {stable}: has no route"
    raise ConfigError(
        f"{cluster.where}: {named}; expected one of {', '.join(others)}",
        hint=f"Try: --stable {others[0]}",
    )


def require_names(cluster: Cluster, stable: str, canary: Manifests) -> None:
    """Check that a canary answers to the names by which clients ask the stable run.

    A name with a digest fixes one artifact, so no other run has it.

    Raises:
        ConfigError: A name is missing; vLLM answers a request for an unknown model with status 404.
    """
    asked = [name for name in _names(_rollout(cluster, stable).deployment) if "@" not in name]
    own = _names(canary.deployment)
    missing = [name for name in asked if name not in own]
    if missing:
        names = "the name" if len(missing) == 1 else "the names"
        aliases = [name for name in own[1:] if "@" not in name] + missing
        raise ConfigError(
            f"{canary.run}: does not serve {', '.join(missing)}, {names} by which clients ask "
            f"{stable}; its share of their requests would get status 404",
            hint=f"Set serving.aliases: [{', '.join(aliases)}] in the run.yaml of {canary.run}, "
            "and run tuneline release again.",
        )


def _names(deployment: Mapping[str, Any]) -> list[str]:
    containers = deployment["spec"]["template"]["spec"]["containers"]
    return [
        name
        for container in containers
        for name in flags(container.get("args", [])).get("--served-model-name", [])
    ]


def read_share(cluster: Cluster, stable: str, canary: str) -> int:
    """Return how many percent of the stable run's requests a canary has.

    Raises:
        ServerError: The cluster does not answer, or refuses.
    """
    server = server_name(stable)
    return weights_of(read_routes(cluster, server), server).get(server_name(canary), 0)


def shift_route(
    cluster: Cluster,
    stable: str,
    canary: str,
    weight: int,
    *,
    hold_s: float,
    check: StepCheck,
) -> list[int]:
    """Raise the canary's weight step by step while its pods stay ready and the checks hold.

    A weight that the canary has already is where the steps begin. A weight that somebody else sets
    in the meantime stays, and ends the steps.

    Args:
        stable: The run that has the route.
        canary: The run that gets the share.
        weight: The last weight, in percent.
        hold_s: Seconds that each weight is kept before its check.
        check: Runs after the hold of each step.

    Returns:
        The weights that held.

    Raises:
        TunelineError: A check failed, or the gateway does not take the weight; the canary's weight
            is 0 again, or the message says why not.
        ServerError: Somebody else changed the weight.
    """
    held: list[int] = []
    share = 0
    now = read_share(cluster, stable, canary)
    pods = _rollout(cluster, canary).newest_pods()
    known = {pod["metadata"]["name"]: _restarts(pod) for pod in pods if is_ready(pod)}
    try:
        for step in [*(one for one in STEPS if now < one < weight), weight]:
            set_weight(cluster, stable, canary, step)
            require_accepted(cluster, server_name(stable))
            logger.info("canary %s: weight %d, for %g s", canary, step, hold_s)
            _hold(cluster, canary, hold_s, known)
            check(step)
            share = read_share(cluster, stable, canary)
            if share != step:
                break
            held.append(step)
    except TunelineError as error:
        raise _taken_back(cluster, stable, canary, held, error) from error
    except Exception as error:  # a bug of ours must not leave requests with an unproven server
        words = _taken_back(cluster, stable, canary, held, ServerError(repr(error)))
        logger.warning("an unexpected error ended the canary: %s", words)
        raise
    except (KeyboardInterrupt, SystemExit):
        logger.warning("interrupted: the canary %s keeps the weight that the route has", canary)
        logger.warning("  take it back with: tuneline deploy canary RUN.yaml --weight 0")
        raise
    if share != step:
        raise ServerError(
            f"canary {canary}: somebody else set its weight to {share} while it was {step}; it "
            f"stays {share}",
            hint="Ask them, then run the command again.",
        )
    return held


def _taken_back(
    cluster: Cluster, stable: str, canary: str, held: Sequence[int], error: TunelineError
) -> TunelineError:
    held_words = f"weight {held[-1]} had held" if held else "no weight had held"
    try:
        set_weight(cluster, stable, canary, 0)
    except TunelineError as second:
        return type(error)(
            f"{error.message}\n  The canary's weight could not be set to 0: {second.message}",
            hint="Try: tuneline deploy canary RUN.yaml --weight 0",
        )
    return type(error)(
        f"{error.message}\n  The canary's weight is 0 again ({held_words}); "
        f"{stable} has all requests",
        hint=error.hint or "Mend the cause, then run the command again.",
    )


def _hold(cluster: Cluster, canary: str, hold_s: float, known: dict[str, int]) -> None:
    """Wait, and check that the canary's pods stay ready and do not start again.

    An autoscaler adds pods, which load for a while, and takes pods away: the canary gets more
    requests with each step.

    Args:
        known: The pods that were ready, with their numbers of restarts; new ones are added.

    Raises:
        ServerError: A pod that was ready is not, a container started again, a new pod cannot start,
            or a pod of another version is there.
    """
    until_s = time.monotonic() + hold_s
    while True:
        rollout = _rollout(cluster, canary)
        is_over = time.monotonic() >= until_s
        if problem := _problem(rollout, known, is_over=is_over):
            reasons = "; ".join(one.line() for one in rollout.troubles())
            raise ServerError(f"canary {canary}: {problem}; {reasons}")
        if is_over:
            return
        time.sleep(min(PAUSE_S, max(0.0, until_s - time.monotonic())))


def _problem(rollout: Rollout, known: dict[str, int], *, is_over: bool) -> str:
    """Return why a canary must not go on; empty if it may."""
    if rollout.status.get("updatedReplicas", 0) != rollout.status.get("replicas", 0):
        return "not all of its pods are of one version"
    num_ready = 0
    for pod in rollout.newest_pods():
        name = pod["metadata"]["name"]
        if _restarts(pod) > known.get(name, 0):
            return "a container started again"
        if is_ready(pod):
            num_ready += 1
            known.setdefault(name, 0)
        elif name in known and "deletionTimestamp" not in pod["metadata"]:
            return f"pod {name} is not ready any more"
    if rollout.wanted and not num_ready:
        return "none of its pods is ready"
    if is_over and any(one.reason in PATIENCE_S for one in rollout.troubles()):
        return "not all of its pods can start"
    return ""


def _rollout(cluster: Cluster, run: str) -> Rollout:
    found = read_rollout(cluster, server_name(run), run)
    if found is None:
        raise ServerError(f"{cluster.where}: run {run} is not deployed")
    return found


def _restarts(pod: Object) -> int:
    containers = pod.get("status", {}).get("containerStatuses", [])
    return sum(one.get("restartCount", 0) for one in containers)


def set_weight(cluster: Cluster, stable: str, canary: str, weight: int) -> None:
    """Give the canary its share of the stable run's route, and the stable run the rest.

    Raises:
        ConfigError: The stable run has no route, no rule of its route sends to it, or a third
            server has a share.
        ServerError: The cluster does not answer, or refuses.
    """
    route = _route(cluster, stable)
    servers = server_name(stable), server_name(canary)
    route["spec"]["rules"] = give_share(route["spec"]["rules"], *servers, weight)
    apply(cluster, [route], force_conflicts=True)


def _route(cluster: Cluster, stable: str) -> Object:
    """Return the stable run's route as it was applied, with the rules that it has now."""
    server = server_name(stable)
    live = get(cluster, ROUTES, server)
    if not live:
        raise ConfigError(f"{cluster.where}: HTTPRoute/{server} is not there; run {stable} has it")
    record = read_record(cluster, server, stable)
    now = record.history.now()
    applied = record.objects(now.number) if now is not None else []
    found = [item for item in applied if ref(item) == f"HTTPRoute/{server}"]
    route = found[0] if found else without_server_fields(live[0])
    route.pop("status", None)
    route["spec"]["rules"] = live[0]["spec"].get("rules", [])
    return route
