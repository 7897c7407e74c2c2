"""The shares of a run's route: which server gets how many percent of the requests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from k8s.cluster.kubectl import Cluster, Object, get
from k8s.rules.objects import ref
from tuneline.core.errors import ConfigError, ServerError
from tuneline.core.progress import logger

ROUTES = "httproutes.gateway.networking.k8s.io"
PART_OF = "app.kubernetes.io/part-of"


def read_routes(cluster: Cluster, server: str) -> list[Object]:
    """Return a server's route; nothing without one, or without the Gateway API."""
    try:
        return get(cluster, ROUTES, server)
    except ServerError as error:
        if "the server doesn't have a resource type" in error.message:
            return []
        raise


def weights_of(routes: Sequence[Object], server: str) -> dict[str, int]:
    """Return the weights in the rules of a server's route that send to it, by server."""
    return {
        backend["name"]: backend.get("weight", 1)
        for route in routes
        for rule in route["spec"].get("rules", [])
        if any(one["name"] == server for one in rule.get("backendRefs", []))
        for backend in rule["backendRefs"]
    }


def give_share(
    rules: Sequence[Mapping[str, Any]], stable: str, canary: str, weight: int
) -> list[Object]:
    """Return a route's rules in which each rule with the stable server gives the canary its share.

    Rules for other servers stay as they are. With weight 0, the canary's share goes back to the
    stable server, and other shares stay.

    Args:
        stable: The name of the stable run's Service or pool.
        canary: The name of the canary's.
        weight: Percent.

    Raises:
        ConfigError: No rule has the stable server, or a third server has a share.
    """
    found, num_given = [], 0
    for number, rule in enumerate(rules):
        backends = {one["name"]: one for one in rule.get("backendRefs", [])}
        if stable not in backends:
            found.append(dict(rule))
            continue
        num_given += 1
        first, share = backends.pop(stable), backends.pop(canary, {"weight": 0})
        others = [one for one in backends.values() if one.get("weight", 1)]
        if others and weight:
            third = ", ".join(one["name"] for one in others)
            raise ConfigError(
                f"HTTPRoute/{stable}: spec.rules[{number}]: {third} has a share too; expected "
                f"only {stable} and {canary}",
                hint="Take its share back: tuneline deploy canary ITS-RUN.yaml --weight 0",
            )
        rest = first.get("weight", 1) + share.get("weight", 1) if others else 100 - weight
        given = [{**first, "name": canary, "weight": weight}] if weight else []
        backends = {name: one for name, one in backends.items() if one in others}
        found.append(
            {**rule, "backendRefs": [{**first, "weight": rest}, *given, *backends.values()]}
        )
    if not num_given:
        names = sorted({one["name"] for rule in rules for one in rule.get("backendRefs", [])})
        raise ConfigError(
            f"HTTPRoute/{stable}: its rules send to {', '.join(names) or 'no server'}; expected a "
            f"rule that sends to {stable}",
            hint="Bring the route of its manifests back: tuneline deploy apply FIRST.yaml",
        )
    return found


def keep_shares(
    cluster: Cluster, wanted: Sequence[Object], recorded: Sequence[Object]
) -> list[Object]:
    """Return manifests whose route keeps the shares that `deploy canary` has set.

    The shares of the manifests count as soon as they differ from those that were applied last: a
    change of `k8s.gateway.canary` wins. Shares of a server that is gone are not kept.

    Args:
        recorded: The manifests that were applied last.

    Raises:
        ServerError: The cluster does not answer, or refuses.
    """
    before = {ref(item): item for item in recorded if item["kind"] == "HTTPRoute"}
    return [
        _kept(cluster, item)
        if ref(item) in before and _shares(item) == _shares(before[ref(item)])
        else item
        for item in wanted
    ]


def kept_words(wanted: Sequence[Object], kept: Sequence[Object]) -> list[str]:
    """Return what `keep_shares` kept, in words."""
    return [
        f"{ref(item)} keeps the shares that `deploy canary` set: "
        + ", ".join(f"{name} {weight}" for name, weight in _shares(item).items())
        for item in kept
        if item not in wanted
    ]


def _kept(cluster: Cluster, item: Object) -> Object:
    server = item["metadata"]["name"]
    live = get(cluster, ROUTES, server)
    shares = _shares(live[0]) if live else {}
    if server not in shares or shares == _shares(item):
        return item
    others = [name for name, weight in shares.items() if name != server and weight]
    found = get(cluster, "deployments", *others) if others else []
    ours = {
        one["metadata"]["name"]
        for one in found
        if one["metadata"].get("labels", {}).get(PART_OF) == "tuneline"
    }
    if gone := [name for name in others if name not in ours]:
        logger.warning("%s: %s has a share and is not there", ref(item), ", ".join(gone))
        return item
    return {**item, "spec": {**item["spec"], "rules": [
        _with_shares(rule, server, shares) for rule in item["spec"]["rules"]
    ]}}  # fmt: skip


def _with_shares(rule: Object, server: str, shares: Mapping[str, int]) -> Object:
    first = next((one for one in rule["backendRefs"] if one["name"] == server), None)
    if first is None:
        return rule
    backends = [{**first, "name": name, "weight": weight} for name, weight in shares.items()]
    return {**rule, "backendRefs": backends}


def _shares(route: Mapping[str, Any]) -> dict[str, int]:
    """Return the weights in the first rule that has the route's own server."""
    name = route["metadata"]["name"]
    for rule in route["spec"].get("rules", []):
        weights = {one["name"]: one.get("weight", 1) for one in rule.get("backendRefs", [])}
        if name in weights:
            return weights
    return {}
