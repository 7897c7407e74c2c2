"""One scenario: calibrate the client, send the load, read the server's figures, judge."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial

from loadtest.calibration.calibrate import calibrate
from loadtest.client.plan import Plan
from loadtest.client.prepare import make_plan, plan_digest
from loadtest.client.processes import Counters, Measured, SpillTo, run_workers
from loadtest.config import CancellationsConfig, LoadTestConfig, Scenario
from loadtest.figures import Figures, figures_of, images_of, models_of
from loadtest.judging.answers import judge_answers
from loadtest.judging.blocks import over_time
from loadtest.judging.cancellations import Left, cancellation_figures, cancellation_warnings
from loadtest.judging.client_figures import client_figures
from loadtest.judging.gpu_energy import Meter, energy_meter
from loadtest.judging.samples import INTERVAL_S, JUDGED_INTERVAL_S, Samples, sampled
from loadtest.judging.server_metrics import Scrape, deltas, reconcile, scrape, settled_scrape
from loadtest.judging.statistics import Statistics
from loadtest.judging.validity import left_out_warnings, unique_warnings
from loadtest.judging.verdict import Evidence, judge
from loadtest.report.answer_schema import AnswerFigures, Endings
from loadtest.report.build import Result
from loadtest.report.schema import Calibration, Server
from loadtest.workload.build import Workload
from loadtest.workload.checks import Checks
from loadtest.workload_config import POOLED
from tuneline.core.endpoint import Endpoint
from tuneline.core.messages import ChatPrompt
from tuneline.core.progress import progress

GiveUp = Callable[[Counters], bool]


def never(_: Counters) -> bool:
    """Let a run go on to its end."""
    return False


def measure_scenario(
    config: LoadTestConfig,
    scenario: Scenario,
    endpoint: Endpoint,
    prompts: Sequence[ChatPrompt],
    *,
    seed: int,
    give_up: Callable[[Plan], GiveUp] = lambda _: never,
    permutation_seed: int | None = None,
    checks: Checks | None = None,
    spill: SpillTo | None = None,
) -> Result:
    """Calibrate, run one scenario, read the server's own figures, and judge.

    Args:
        config: Common options.
        scenario: What to run.
        endpoint: Where to.
        prompts: For `workload.source: prompts`.
        seed: Seed of the arrivals and the order.
        give_up: Returns for a plan what is asked each second of its run; True ends the run, and
            requests in flight stay unfinished.
        permutation_seed, checks: See `build_workload`.
        spill: Where the records of a long run go; without it they stay in memory.
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
    slo = scenario.slo or config.slo
    pause_s = JUDGED_INTERVAL_S if slo.has_samples else INTERVAL_S
    with ExitStack() as stack:
        samples = None
        if before is not None:
            samples = stack.enter_context(sampled(partial(scrape, endpoint), pause_s))
        meter = stack.enter_context(energy_meter(endpoint.url))
        watch = _noted_by(meter, give_up(plan))
        measured = run_plan(scenario.name, plan, endpoint.api_key, watch, spill=spill)
    figures = figures_of(config, scenario, plan, workload, measured)
    server = after = None
    if before is not None:
        after = settled_scrape(endpoint, before, figures.totals["generation_tokens"] or 0.0)
        server = None if after is None else server_figures(before, after, figures.totals)
    if samples is not None:
        samples = samples.after(measured.start_unix_s)
    result = judged(
        config, scenario, plan, workload, measured, calibration, server, checks,
        figures=figures, samples=samples,
    )  # fmt: skip
    if meter is not None:
        result = replace(result, gpu=meter.figures(figures.totals["generation_tokens"]))
    if config.cancellations is None:
        return result
    return with_cancellations(result, config.cancellations, figures.left, before, after)


def _noted_by(meter: Meter | None, give_up: GiveUp) -> GiveUp:
    """Return `give_up`, which a meter of the GPUs' energy follows."""
    if meter is None:
        return give_up

    def watch(counters: Counters) -> bool:
        meter.note(counters.num_in_flight)
        return give_up(counters)

    return watch


def with_cancellations(
    result: Result,
    config: CancellationsConfig,
    left: Left,
    before: Scrape | None,
    after: Scrape | None,
) -> Result:
    """Return a result with the figures and warnings of clients that left."""
    found = cancellation_figures(left, before, after)
    num_requests = result.stats.num_offered + result.stats.num_warmup
    said = cancellation_warnings(found, num_requests, config.share)
    judgement = replace(result.judgement, warnings=[*result.judgement.warnings, *said])
    return replace(result, cancellations=found, judgement=judgement)


def run_plan(
    label: str,
    plan: Plan,
    key: str | None,
    give_up: GiveUp = never,
    *,
    workers: range | None = None,
    start: Callable[[], float] | None = None,
    spill: SpillTo | None = None,
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

        return run_workers(plan, key, watch, workers=workers, start=start, spill=spill)


def server_figures(before: Scrape, after: Scrape, client: dict[str, float | None]) -> Server:
    """Return the server's own figures between two scrapes, reconciled with the client's."""
    figures = deltas(before, after)
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
    *,
    figures: Figures | None = None,
    samples: Samples | None = None,
) -> Result:
    """Return the figures and the verdict of a measured scenario.

    Args:
        figures: Those of `measured`, if they are known.
        samples: The server's memory and cache over the run.
    """
    figures = figures or figures_of(config, scenario, plan, workload, measured)
    slo, stats = scenario.slo or config.slo, figures.stats
    client = client_figures(measured.workers, stats.send_lag, stats.connect_wait)
    answers = None if checks is None else _answers(checks, plan, measured, figures.num_asked)
    endings = _endings(plan, measured)
    run_over_time = None if figures.blocks is None else over_time(figures.blocks, samples)
    evidence = Evidence(
        calibration=calibration,
        prefix_hit_rate=_hit_rate(server, stats),
        answers=answers,
        repeats=figures.repeats,
        over_time=run_over_time,
        endings=endings,
        num_closed_at_once=sum(one["self_check"]["num_closed_at_once"] for one in measured.workers),
        is_disk_full=measured.is_disk_full,
    )
    is_open = scenario.loop == "open"
    judgement = judge(config, slo, stats, client, open_loop=is_open, evidence=evidence)
    if server is not None:
        judgement = replace(judgement, warnings=judgement.warnings + server.warnings)
    if config.workload.unique_prompts and plan.sessions is None:
        said = unique_warnings(stats.num_offered + stats.num_warmup, len(plan.body_of))
        judgement = replace(judgement, warnings=judgement.warnings + said)
    said = left_out_warnings(workload.left_out)
    judgement = replace(judgement, warnings=judgement.warnings + said)
    return Result(
        scenario=scenario,
        records=figures.records,
        stats=stats,
        client=client,
        judgement=judgement,
        plan_digest=plan_digest(plan, workload),
        models=models_of(plan, workload, figures.records),
        model_figures=figures.models,
        calibration=calibration,
        server=server,
        examples=_examples(measured),
        text_sample=[text for worker in measured.workers for text in worker["text_sample"]][:3],
        start_unix_s=measured.start_unix_s,
        answers=answers,
        repeats=figures.repeats,
        over_time=run_over_time,
        endings=endings,
        images=images_of(plan, workload, measured),
        of_tokens=plan.route not in POOLED,
        is_spilled=bool(measured.spills),
    )


def _answers(checks: Checks, plan: Plan, measured: Measured, num_asked: int) -> AnswerFigures:
    """Return the figures of the answers to the reference's prompts, without warm-up.

    A long run compares a sample; as many answers count as asked as the sample stands for.
    """
    found = [tuple(one) for worker in measured.workers for one in worker["checked"]]
    kept = [one for one in found if not plan.is_warmup(one[0])]
    num_answered = sum(one.get("num_checked", len(one["checked"])) for one in measured.workers)
    if num_answered > len(found):
        num_asked = round(num_asked * len(found) / num_answered)
    return judge_answers(checks, kept, num_asked)


def _examples(measured: Measured) -> dict[str, list[str]]:
    """Return up to three messages per class of failure, from all processes."""
    examples: dict[str, list[str]] = {}
    for worker in measured.workers:
        for name, messages in worker["examples"].items():
            examples[name] = (examples.get(name, []) + messages)[:3]
    return examples


def _endings(plan: Plan, measured: Measured) -> Endings:
    """Return how the answers end and which models they name, from all processes."""
    reasons: Counter[str] = Counter()
    named: dict[str, Counter[str]] = {}
    for worker in measured.workers:
        reasons.update(worker.get("finishes", {}))
        for asked, names in worker.get("named", {}).items():
            named.setdefault(asked, Counter()).update(names)
    return Endings(
        finish_reasons=dict(reasons.most_common()),
        named={asked: dict(names.most_common()) for asked, names in sorted(named.items())},
        num_validated=None
        if plan.form is None
        else sum(int(worker.get("num_validated", 0)) for worker in measured.workers),
    )


def _hit_rate(server: Server | None, stats: Statistics) -> float | None:
    """Return the prefix cache's hit rate by the server's counters, or by its usage."""
    hit_rate = server.figures["prefix_hit_rate"] if server else None
    if hit_rate is None and stats.tokens.num_cached_prompt_tokens is not None:
        hit_rate = stats.tokens.num_cached_prompt_tokens / max(stats.tokens.num_prompt_tokens, 1)
    return hit_rate
