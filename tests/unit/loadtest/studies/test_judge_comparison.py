"""The verdict of a comparison of two endpoints."""

from __future__ import annotations

from typing import Any, Literal

import pytest

from loadtest.report.schema import Requests, ScenarioReport
from loadtest.studies.differences import judge_comparison, judge_difference
from loadtest.studies.schema import SIDES, ComparedScenario, Difference, Side
from tuneline.core.verdict import Verdict

Found = Literal["slower", "faster", "no difference", "unclear"]


def difference(verdict: Found, num_needed: int | None = None) -> Difference:
    return Difference(
        metric="ttft_s", unit="s", num_pairs=40, mean_a=0.1, mean_b=0.12, difference=0.02,
        ci95_low=0.01, ci95_high=0.03, verdict=verdict, num_needed=num_needed,
    )  # fmt: skip


def scenario(
    *verdicts: Found,
    tokens: tuple[float, float] | None = (20.0, 20.0),
    lost: dict[Side, int] | None = None,
    run_verdicts: dict[Side, Verdict] | None = None,
) -> ComparedScenario:
    """Return a scenario whose two sides lost requests: one of two failed, the others unfinished."""

    def run(side: Side) -> ScenarioReport:
        num_lost = (lost or {}).get(side, 0)
        values: dict[str, Any] = {
            "verdict": (run_verdicts or {}).get(side, Verdict.PASS),
            "problems": [f"a reason on {side}"],
            "requests": Requests.model_construct(
                failed=num_lost // 2, unfinished=num_lost - num_lost // 2
            ),
        }
        return ScenarioReport.model_construct(**values)

    return ComparedScenario.model_construct(
        name="x",
        differences=[difference(one) for one in verdicts],
        answer_tokens=tokens,
        runs={side: [run(side)] for side in SIDES},
    )


@pytest.mark.parametrize(
    ("scenarios", "verdict", "words"),
    [
        ([scenario("no difference", "faster")], Verdict.PASS, []),
        ([scenario("slower")], Verdict.FAIL, ["B - A is +20.00 ms"]),
        ([scenario("unclear")], Verdict.INCONCLUSIVE, ["unclear"]),
        ([scenario("slower", "unclear")], Verdict.FAIL, ["B - A", "unclear"]),
        ([scenario("unclear", "slower")], Verdict.FAIL, ["unclear", "B - A"]),
        ([scenario("faster", lost={"a": 2, "b": 2})], Verdict.PASS, []),
        (
            [scenario("faster", lost={"a": 2, "b": 3})],
            Verdict.FAIL, ["3 requests of B failed or did not end; 2 of A"],
        ),
        ([scenario("faster", lost={"a": 3, "b": 2})], Verdict.PASS, []),
        # A margin of 0.1 of 20 tokens is 2 tokens.
        ([scenario("faster", tokens=(20.0, 22.0))], Verdict.PASS, []),
        ([scenario("faster", tokens=(20.0, 22.5))], Verdict.INCONCLUSIVE, ["22.5 on B"]),
        ([scenario("faster", tokens=(20.0, 17.5))], Verdict.INCONCLUSIVE, ["17.5 on B"]),
        ([scenario("slower", tokens=(20.0, 30.0))], Verdict.FAIL, ["B - A", "30 on B"]),
        ([scenario("faster", tokens=None)], Verdict.INCONCLUSIVE, ["carry no usage"]),
        ([scenario("slower", tokens=None)], Verdict.FAIL, ["B - A", "carry no usage"]),
        ([scenario(tokens=None)], Verdict.INVALID, ["no request succeeded on both sides"]),
        (
            [scenario("slower", run_verdicts={"b": Verdict.INVALID}), scenario("faster")],
            Verdict.INVALID, ["B - A", "a reason on b"],
        ),
        ([scenario("faster"), scenario("slower")], Verdict.FAIL, ["B - A"]),
    ],
)  # fmt: skip
def test_a_comparison_is_as_good_as_its_worst_finding(
    scenarios: list[ComparedScenario], verdict: Verdict, words: list[str]
) -> None:
    found, problems = judge_comparison(scenarios, 0.1)
    assert found == verdict
    assert len(problems) == len(words), problems
    assert all(word in problem for word, problem in zip(words, problems, strict=True)), problems


@pytest.mark.parametrize(
    ("low", "high", "enough", "verdict"),
    [
        (0.06, 0.2, True, "slower"),
        (0.05, 0.2, True, "unclear"),
        (-0.2, -0.06, True, "faster"),
        (-0.2, -0.05, True, "no difference"),
        (-0.2, 0.05, True, "no difference"),
        (-0.01, 0.06, True, "unclear"),
        (0.06, 0.2, False, "unclear"),
    ],
)
def test_a_difference_is_judged_by_its_interval(
    low: float, high: float, enough: bool, verdict: Found
) -> None:
    assert judge_difference(low, high, 0.05, enough) == verdict
