"""PASS, FAIL, INCONCLUSIVE or INVALID, and why. Pure.

INVALID: the client was the bottleneck or the numbers contradict themselves; they say nothing about
the server, good or bad. FAIL: an objective is missed. INCONCLUSIVE: too few requests to say. The
first that applies, in this order, is the verdict; PASS is the rest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from loadtest.config import SLO, LoadTestConfig
from loadtest.judging.answers import ending_problems, repeat_problems
from loadtest.judging.objectives import judge_objectives
from loadtest.judging.soak import judge_drifts
from loadtest.judging.statistics import Statistics
from loadtest.judging.validity import (
    answer_problems,
    calibration_problems,
    client_problems,
    hit_rate_problems,
    lag_budget_s,
    reuse_warnings,
)
from loadtest.report.answer_schema import AnswerFigures, Endings, RepeatFigures
from loadtest.report.schema import Calibration, Client, Objective
from loadtest.report.soak_schema import OverTime
from tuneline.core.verdict import Verdict

DISK_FULL = (
    "the disk became full: the run ended early, and the figures are those of the requests before"
)
GROWING = (
    "latency grew by {:.0%} over the run and did not settle: the endpoint does not keep up with "
    "this rate"
)
SEVERITY: tuple[Verdict, ...] = (Verdict.INVALID, Verdict.FAIL, Verdict.INCONCLUSIVE, Verdict.PASS)


@dataclass(frozen=True)
class Judgement:
    """The verdict of a scenario and its reasons."""

    verdict: Verdict
    problems: list[str]
    """Why the verdict is not PASS."""
    warnings: list[str]
    objectives: list[Objective]
    is_worth_repeating: bool
    """The verdict is INVALID only for the state of the client or its host at that time."""


@dataclass(frozen=True)
class Evidence:
    """The facts of a run besides the figures of its requests, as far as it has them."""

    calibration: Calibration | None = None
    prefix_hit_rate: float | None = None
    """The share of the prompts' tokens that the server's prefix cache held."""
    answers: AnswerFigures | None = None
    """Answers to the reference's prompts."""
    repeats: RepeatFigures | None = None
    """How fast the server answers a prompt again."""
    over_time: OverTime | None = None
    endings: Endings | None = None
    """How the answers end, and which models they name."""
    num_closed_at_once: int = 0
    """See `answer_problems`."""
    is_disk_full: bool = False
    """The run ended early, because its records filled the disk."""


NO_EVIDENCE = Evidence()


def worst(verdicts: Sequence[Verdict]) -> Verdict:
    """Return the most severe verdict."""
    return min(verdicts, key=SEVERITY.index)


def judge(
    config: LoadTestConfig,
    slo: SLO,
    stats: Statistics,
    client: Client,
    *,
    open_loop: bool,
    evidence: Evidence = NO_EVIDENCE,
) -> Judgement:
    """Judge a scenario's figures by its objectives and by the client's own limits."""
    of_client, warnings = client_problems(config, slo, stats, client, open_loop)
    if evidence.calibration is not None:
        of_client += calibration_problems(
            evidence.calibration, lag_budget_s(config, slo, stats.latencies["e2e_s"].at(50))
        )
    of_answers, more = answer_problems(config, slo, stats, evidence.num_closed_at_once)
    warnings += more
    declared = config.workload.prefix_hit_rate
    if declared is not None:
        of_answers += hit_rate_problems(declared, evidence.prefix_hit_rate)
    if stats.sessions is not None:
        warnings += reuse_warnings(stats.sessions.prefix_reuse, evidence.prefix_hit_rate)
    least_share = config.workload.min_repeat_ttft_share
    for problems, more in (
        repeat_problems(evidence.repeats, least_share),
        ending_problems(evidence.endings),
    ):
        of_answers += problems
        warnings += more
    if evidence.is_disk_full:
        of_answers.append(DISK_FULL)
    invalid = of_client + of_answers
    objectives = judge_objectives(slo, stats, is_closed=not open_loop)
    objectives += judge_drifts(slo, evidence.over_time)
    missed = [f"{o.name}: {o.reason}" for o in objectives if o.verdict != Verdict.PASS]
    verdict = worst([Verdict.PASS, *(objective.verdict for objective in objectives)])
    if (problem := _without_success(stats)) is not None:
        missed.append(problem)
        verdict = Verdict.FAIL
    if evidence.answers is not None and evidence.answers.problems:
        missed += [f"answers under load: {problem}" for problem in evidence.answers.problems]
        verdict = worst([verdict, Verdict.FAIL])
    steady = stats.steady_state
    if open_loop and steady.growing:
        missed.append(GROWING.format(steady.growth or 0))
        verdict = worst([verdict, Verdict.INCONCLUSIVE])
    if not steady.found:
        warnings.append("no steady part was found: the run may be too short")
    return Judgement(
        verdict=Verdict.INVALID if invalid else verdict,
        problems=invalid + missed,
        warnings=warnings,
        objectives=objectives,
        is_worth_repeating=bool(of_client) and not of_answers,
    )


def _without_success(stats: Statistics) -> str | None:
    """Return that nothing succeeded; None if something did, or if every client left."""
    if not stats.num_offered:
        return f"no request was measured: the run ended in its warm-up of {stats.num_warmup}"
    if stats.num_succeeded or not stats.failed.n:
        return None
    return f"no request succeeded: {stats.num_failed} failed, {stats.num_unfinished} are unfinished"
