"""Autoscaling from the load report: every target has its formula in an annotation."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from k8s.capacity import Capacity, Objective, pause_s
from k8s.config import Autoscaling
from k8s.render.components.component import Component
from k8s.render.facts import Document, Facts, Files
from k8s.render.queries import quantile, selector
from k8s.rules.objects import SETTINGS

KEY = "k8s.autoscaling"
FORMULA = "tuneline/formula"
IN_FLIGHT = "tuneline_requests_in_flight"
READY = "tuneline_ready_seconds"
WINDOW = "2m"
MOST_RATIO = 1.5
"""At most half as many pods again as serve are added before the next pod answers."""


def limit_in_flight(served_env: Mapping[str, str], facts: Facts) -> dict[str, str]:
    """Return the server's variables with the limit of requests in flight of an autoscaled pod.

    Without it, the queue of a spike outlasts the start of the pods that carry the spike. A lower
    limit of the run stays.
    """
    scaling, capacity = _needed(facts)
    settings = json.loads(served_env.get(SETTINGS, "{}"))
    most = int(capacity.admitted_per_pod(scaling.headroom).value)
    settings["max_in_flight"] = min(most, settings.get("max_in_flight", most))
    return {**served_env, SETTINGS: json.dumps(settings)}


def fill_hpa(files: Files, facts: Facts) -> None:
    """Put the measured target into a HorizontalPodAutoscaler."""
    scaling, capacity = _needed(facts)
    target = capacity.in_flight_per_pod(scaling.headroom)
    pause = pause_s(scaling)
    item = files["autoscaler.yaml"]
    spec = item["spec"]
    spec["minReplicas"], spec["maxReplicas"] = scaling.min_replicas, scaling.max_replicas
    (metric,) = spec["metrics"]
    metric["pods"]["target"]["averageValue"] = target.text
    spec["behavior"]["scaleDown"]["stabilizationWindowSeconds"] = int(pause.value)
    limit = capacity.admitted_per_pod(scaling.headroom)
    formulas = {"target": target.formula, "limit": limit.formula, "pause": pause.formula}
    _explain(item, formulas)


def fill_keda(files: Files, facts: Facts) -> None:
    """Put the measured targets and the queries into a ScaledObject."""
    scaling, capacity = _needed(facts)
    target = capacity.in_flight_per_pod(scaling.headroom)
    pause = pause_s(scaling)
    item = files["scaled-object.yaml"]
    spec = item["spec"]
    # kustomize does not rename what a custom resource refers to.
    spec["scaleTargetRef"]["name"] = facts.server
    spec["minReplicaCount"], spec["maxReplicaCount"] = scaling.min_replicas, scaling.max_replicas
    spec["cooldownPeriod"] = int(pause.value)
    spec["fallback"]["replicas"] = max(1, scaling.min_replicas)
    options = spec["advanced"]["horizontalPodAutoscalerConfig"]
    options["name"] = facts.server
    options["behavior"]["scaleDown"]["stabilizationWindowSeconds"] = int(pause.value)
    in_flight, objectives = spec["triggers"]
    where = selector(facts)
    in_flight["metadata"]["query"] = f"sum({IN_FLIGHT}{{{where}}})"
    in_flight["metadata"]["threshold"] = target.text
    limit = capacity.admitted_per_pod(scaling.headroom)
    formulas = {"in-flight": target.formula, "limit": limit.formula, "pause": pause.formula}
    if capacity.objectives:
        objectives["metadata"]["query"] = _worst(capacity.objectives, where)
        limits = " and ".join(
            f"{metric} p{limit.percentile:g} / {limit.limit_s:g} s"
            for metric, limit in sorted(capacity.objectives.items())
        )
        formulas["objectives"] = (
            f"the larger of {limits}, at most {MOST_RATIO:g}, times the pods that serve"
        )
    else:
        spec["triggers"].remove(objectives)
    if scaling.wake_query is not None:
        _wake(spec, scaling.wake_query, where)
    for trigger in spec["triggers"]:
        trigger["metadata"]["serverAddress"] = scaling.prometheus_url
    _explain(item, formulas)


def _wake(spec: Document, query: str, where: str) -> None:
    """Let the number of pods be 0: without a pod there are no metrics, and that is not a fault.

    Prometheus keeps `up` at 0 for a pod whose scrape fails. The load is 0 only if it has no
    `up` at all, so that a failed scrape is a missing metric and removes no pod.
    `on()` keeps the result at one series, which KEDA asks for.
    """
    for trigger in spec["triggers"]:
        known = trigger["metadata"]["query"]
        trigger["metadata"]["query"] = f"({known}) or on() 0 * absent(up{{{where}}})"
    metadata = {"query": query, "threshold": "1000000", "activationThreshold": "0"}
    spec["triggers"].append(
        {
            "type": "prometheus",
            "name": "wake",
            "metricType": "AverageValue",
            "metadata": {"serverAddress": "", **metadata, "ignoreNullValues": "true"},
        }
    )


def _worst(objectives: Mapping[str, Objective], where: str) -> str:
    """Return the query of the worst objective's ratio to its limit, times the pods that serve.

    A quantile without traffic is not a number, which `>= 0` leaves out. The term of 0 keeps the
    result there while pods answer, so that only a missing metric is a fault. TTFT grows faster than
    the load once requests wait, so the ratio has an upper limit.
    """
    serving = f"count({READY}{{{where}}})"
    ratios = [
        f"label_replace({quantile(metric, limit.percentile, where, WINDOW)} / {limit.limit_s:g} "
        f'>= 0, "objective", "{metric}", "", "")'
        for metric, limit in sorted(objectives.items())
    ]
    worst = f"max({' or '.join([*ratios, f'0 * {serving}'])})"
    return f"clamp_max({worst}, {MOST_RATIO:g}) * {serving}"


def _needed(facts: Facts) -> tuple[Autoscaling, Capacity]:
    scaling = facts.config.autoscaling
    assert scaling is not None  # noqa: S101 (the row is wanted only with it)
    return scaling, facts.need_capacity(KEY)


def _explain(item: Document, formulas: Mapping[str, str]) -> None:
    notes: dict[str, Any] = item["metadata"].setdefault("annotations", {})
    notes |= {f"{FORMULA}-{name}": formula for name, formula in formulas.items()}


COMPONENTS: dict[str, Component] = {
    "hpa": Component(
        wanted=lambda config: config.autoscaling is not None and config.autoscaling.by == "hpa",
        folder="hpa",
        fill=fill_hpa,
    ),
    "keda": Component(
        wanted=lambda config: config.autoscaling is not None and config.autoscaling.by == "keda",
        folder="keda",
        fill=fill_keda,
    ),
}
