from typing import Any

import pytest

from loadtest.config import SLO
from loadtest.judging.recheck import find_contradictions
from loadtest.report.schema import Objective, ScenarioReport
from loadtest.report.session_schema import SessionFigures
from tuneline.core.verdict import Verdict

BOUNDS = [name for name in SLO.model_fields if name.startswith(("min_", "max_"))]
assert len(BOUNDS) >= 9


def slo_of(name: str, limit: float = 0.5) -> SLO:
    return SLO.model_validate({"goodput_e2e_s": 1.0, "max_error_rate": None, name: limit})


def scenario(*objectives: Objective, sessions: Any = None) -> ScenarioReport:
    """The fields that the comparison reads."""
    return ScenarioReport.model_construct(
        latency={}, objectives=list(objectives), sessions=sessions
    )


def passed(name: str, measured: float) -> Objective:
    return Objective(
        name=name, limit=0.5, measured=measured, unit="1", n=100, verdict=Verdict.PASS, reason=""
    )


@pytest.mark.parametrize("name", BOUNDS)
def test_a_bound_that_the_report_does_not_judge_is_named(name: str) -> None:
    whole = scenario(sessions=SessionFigures.model_construct())
    assert find_contradictions(whole, slo_of(name)) == [f"{name} was not judged"]


@pytest.mark.parametrize("name", [name for name in BOUNDS if name != "max_error_rate"])
def test_a_bound_that_the_figure_breaks_is_named(name: str) -> None:
    kept, broken = (0.6, 0.4) if name.startswith("min_") else (0.4, 0.6)
    assert find_contradictions(scenario(passed(name, kept)), slo_of(name)) == []
    [problem] = find_contradictions(scenario(passed(name, broken)), slo_of(name))
    assert problem == f"{name} is {broken} and PASS; the limit is 0.5"


def test_a_latency_that_the_report_leaves_out_is_named() -> None:
    slo = SLO(ttft_s={"p90": 1.0}, max_error_rate=None)
    assert find_contradictions(scenario(), slo) == ["ttft_s.p90 was not judged"]


def test_a_scenario_without_conversations_has_no_objective_of_them() -> None:
    slo = SLO(session_s={"p90": 1.0}, max_session_error_rate=0.5, max_error_rate=None)
    assert find_contradictions(scenario(), slo) == []
