"""One scenario: calibrate the client, send the load, read the server's figures, judge."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from loadtest.calibration.calibrate import calibrate
from loadtest.client.plan import Plan
from loadtest.client.prepare import make_plan, plan_digest, with_unsent
from loadtest.client.processes import Counters, Measured, run_workers
from loadtest.client.records import CANCELLED, SUCCEEDED, Records
from loadtest.config import LoadTestConfig, Scenario
from loadtest.judging.answers import judge_answers, repeat_figures
from loadtest.judging.client_figures import client_figures
from loadtest.judging.server_metrics import (
    Scrape,
    cancellation_figures,
    cancellation_warnings,
    deltas,
    reconcile,
    scrape,
    settled_scrape,
)
from loadtest.judging.statistics import Statistics, statistics
from loadtest.judging.verdict import judge
from loadtest.report.answer_schema import AnswerFigures
from loadtest.report.build import Result
from loadtest.report.schema import Calibration, Server
from loadtest.workload.build import Workload
from loadtest.workload.checks import Checks
from tuneline.core.endpoint import Endpoint
from tuneline.core.messages import Messages
from tuneline.core.progress import progress

GiveUp = Callable[[Counters], bool]


def measure_scenario(
    config: LoadTestConfig,
    scenario: Scenario,
    endpoint: Endpoint,
    prompts: Sequence[Messages],
    *,
    seed: int,
    give_up: GiveUp = lambda _: False,
    permutation_seed: int | None = None,
    checks: Checks | None = None,
) -> Result:
    """Calibrate, run one scenario, read the server's own figures, and judge.

    Args:
        config: Common options.
        scenario: What to run.
        endpoint: Where to.
        prompts: For `workload.source: prompts`.
        seed: Seed of the arrivals and the order.
        give_up: Asked each second; True ends the run, and requests in flight stay unfinished.
        permutation_seed, checks: See `build_workload`.
    """
    plan, workload = make_plan(
        config,
        scenario,
        endpoint,
        prompts,
        seed=seed,
        permutation_seed=permutation_seed,
        checks=checks,
    )
    calibration = None
    if config.calibrate:
        per_arrival = 1.0 if plan.sessions is None else plan.sessions.mean_turns
        calibration = calibrate(
            config,
            scenario,
            tls=plan.tls,
            times_s=plan.arrivals_s or (),
            requests_per_arrival=per_arrival,
        )
    before = scrape(endpoint)
    measured = run_plan(scenario.name, plan, endpoint.api_key, give_up)
    server = after = None
    if before is not None:
        ok = measured.records.select(measured.records.state == SUCCEEDED)
        after = settled_scrape(endpoint, before, float(np.nansum(ok.tokens)))
        server = None if after is None else server_figures(before, after, measured.records)
    result = judged(config, scenario, plan, workload, measured, calibration, server, checks)
    if config.cancellations is None:
        return result
    left = cancellation_figures(measured.records, before, after)
    said = [
        *result.judgement.warnings,
        *cancellation_warnings(left, len(measured.records), config.cancellations.share),
    ]
    judgement = replace(result.judgement, warnings=said)
    return replace(result, cancellations=left, judgement=judgement)


def run_plan(
    label: str,
    plan: Plan,
    key: str | None,
    give_up: GiveUp = lambda _: False,
    *,
    workers: range | None = None,
    start: Callable[[], float] | None = None,
) -> Measured:
    """Run a plan, or the part of it that falls to `workers`, with a progress display."""
    total = plan.num_requests if plan.arrivals_s is None else len(plan.arrivals_s)
    if plan.sessions is not None and total is not None:
        total = sum(map(plan.sessions.num_turns, range(total)))
    with progress(f"load test {label}", total, "requests") as advance:

        def watch(counters: Counters) -> bool:
            advance(
                counters.num_answered + counters.num_failed,
                f"{counters.num_in_flight} in flight, {counters.num_answered} ok, "
                f"{counters.num_failed} failed",
            )
            return give_up(counters)

        return run_workers(plan, key, watch, workers=workers, start=start)


def server_figures(before: Scrape, after: Scrape, records: Records) -> Server:
    """Return the server's own figures between two scrapes, reconciled with all records."""
    ok = records.select(records.state == SUCCEEDED)
    figures = deltas(before, after)
    client: dict[str, float | None] = {"generation_tokens": float(np.nansum(ok.tokens))}
    if len(ok):
        client["mean_ttft_s"] = float(np.mean(ok.first_token_s - ok.sent_s))
        client["mean_e2e_s"] = float(np.mean(ok.last_token_s - ok.sent_s))
    rows, warnings = reconcile(figures, client)
    return Server(figures=figures, reconciliation=rows, warnings=warnings)


def judged(
    config: LoadTestConfig,
    scenario: Scenario,
    plan: Plan,
    workload: Workload,
    measured: Measured,
    calibration: Calibration | None = None,
    server: Server | None = None,
    checks: Checks | None = None,
) -> Result:
    """Return the figures and the verdict of a measured scenario."""
    records = with_unsent(plan, measured.records)
    slo = scenario.slo or config.slo
    bodies = [plan.body_place(int(index)) for index in records.index]
    asked = np.array([workload.output_tokens[body] for body in bodies], np.float64)
    is_check = np.array(
        [plan.check_of(int(index)) is not None for index in records.index], np.bool_
    )
    # The reference's answers end by themselves.
    exact = np.where(is_check, records.tokens, asked) if config.ignore_eos else None
    stats = statistics(
        records,
        slo,
        exact_tokens=exact,
        duration_s=scenario.duration_s,
        ended_early=measured.ended_early,
        num_turns=None if plan.sessions is None else plan.sessions.num_turns,
    )
    client = client_figures(measured.workers, stats.send_lag)
    declared = config.workload.min_repeat_ttft_share
    repeats = None if plan.sessions is not None else repeat_figures(records, bodies, declared)
    answers = None if checks is None else _answers(checks, measured, records, is_check)
    judgement = judge(
        config,
        slo,
        stats,
        client,
        open_loop=scenario.loop == "open",
        calibration=calibration,
        prefix_hit_rate=_hit_rate(server, stats),
        answers=answers,
        repeats=repeats,
    )
    if server is not None:
        judgement = replace(judgement, warnings=judgement.warnings + server.warnings)
    return Result(
        scenario=scenario,
        records=records,
        stats=stats,
        client=client,
        judgement=judgement,
        plan_digest=plan_digest(plan, workload),
        models=[workload.models[body] for body in bodies],
        calibration=calibration,
        server=server,
        examples=_examples(measured),
        text_sample=[text for worker in measured.workers for text in worker["text_sample"]][:3],
        start_unix_s=measured.start_unix_s,
        answers=answers,
        repeats=repeats,
    )


def _answers(
    checks: Checks, measured: Measured, records: Records, is_check: NDArray[np.bool_]
) -> AnswerFigures:
    """Return the figures of the answers to the reference's prompts, without warm-up."""
    of_warmup = set(records.index[records.warmup].tolist())
    found = [tuple(one) for worker in measured.workers for one in worker["checked"]]
    asks = is_check & ~records.warmup & (records.state != CANCELLED)
    kept = [one for one in found if one[0] not in of_warmup]
    return judge_answers(checks, kept, int(np.sum(asks)))


def _examples(measured: Measured) -> dict[str, list[str]]:
    """Return up to three messages per class of failure, from all processes."""
    examples: dict[str, list[str]] = {}
    for worker in measured.workers:
        for name, messages in worker["examples"].items():
            examples[name] = (examples.get(name, []) + messages)[:3]
    return examples


def _hit_rate(server: Server | None, stats: Statistics) -> float | None:
    """Return the prefix cache's hit rate by the server's counters, or by its usage."""
    hit_rate = server.figures["prefix_hit_rate"] if server else None
    if hit_rate is None and stats.tokens.num_cached_prompt_tokens is not None:
        hit_rate = stats.tokens.num_cached_prompt_tokens / max(stats.tokens.num_prompt_tokens, 1)
    return hit_rate
