"""Whether a comparison's verdict follows from the figures next to it. Pure."""

from __future__ import annotations

from loadtest.studies.differences import judge_comparison, judge_difference
from loadtest.studies.schema import SIDES, ComparisonReport
from tuneline.core.verdict import Verdict

MIN_ROUNDS = 2
"""A B B A: with a single turn of each side, a drift of the machine is a difference."""


def recheck_comparison(report: ComparisonReport) -> list[str]:
    """Return how a comparison with the verdict PASS contradicts its figures; empty if it does not.

    A verdict is a word in a file. It is judged again by the report's own margin.
    """
    if not report.scenarios:
        return ["it has no scenario"]
    problems = []
    for scenario in report.scenarios:
        for one in scenario.differences:
            enough = one.num_needed is None
            own = judge_difference(one.ci95_low, one.ci95_high, report.margin * one.mean_a, enough)
            if one.verdict != own:
                problems.append(
                    f"{scenario.name}: {one.metric} is called {one.verdict}; its interval says "
                    f"{own}"
                )
        turns_a, turns_b = (len(scenario.runs.get(side, [])) for side in SIDES)
        if report.interleaved and not turns_a == turns_b >= MIN_ROUNDS:
            problems.append(
                f"{scenario.name}: {turns_a} turns of A and {turns_b} of B; expected at least "
                f"{MIN_ROUNDS} of each"
            )
    if problems:
        return problems
    verdict, why = judge_comparison(report.scenarios, report.margin)
    return [] if verdict is Verdict.PASS else [f"the figures say {verdict}", *why]
