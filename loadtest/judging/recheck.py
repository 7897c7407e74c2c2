"""Compare a scenario's verdict with its own figures and with its objectives. Pure."""

from __future__ import annotations

from loadtest.config import SLO
from loadtest.judging.statistics import objective_name
from loadtest.report.schema import ScenarioReport
from tuneline.core.verdict import Verdict


def find_contradictions(scenario: ScenarioReport, slo: SLO) -> list[str]:
    """Return how a scenario with the verdict PASS contradicts its figures; empty if it does not.

    Args:
        slo: The objectives that the scenario must meet.
    """
    figures = {
        objective_name(metric, q): (limit, scenario.latency[metric].at(q))
        for metric, limits in slo.latency.items()
        if metric in scenario.latency
        for q, limit in limits.items()
    }
    limits = {
        objective_name(metric, q): limit
        for metric, by_percentile in slo.latency.items()
        for q, limit in by_percentile.items()
    }
    limits |= slo.bounds
    found = {objective.name: objective for objective in scenario.objectives}
    problems = []
    for name, limit in limits.items():
        objective = found.get(name)
        if objective is None:
            # A scenario without conversations has no objective of conversations.
            if scenario.sessions is not None or "session" not in name:
                problems.append(f"{name} was not judged")
            continue
        measured = objective.measured
        kept = measured is not None and (
            measured >= limit if name.startswith("min_") else measured <= limit
        )
        if objective.verdict is not Verdict.PASS or objective.limit != limit or not kept:
            problems.append(f"{name} is {measured} and {objective.verdict}; the limit is {limit:g}")
        elif name in figures and figures[name][1] != measured:
            problems.append(f"{name} was judged at {measured}; the figure is {figures[name][1]}")
    stated = found.get("max_error_rate")
    if stated is not None and stated.measured != scenario.requests.error_rate:
        problems.append(
            f"max_error_rate was judged at {stated.measured}; the figure is "
            f"{scenario.requests.error_rate}"
        )
    return problems
