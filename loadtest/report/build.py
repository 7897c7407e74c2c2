"""From measured and judged scenarios to a `LoadReport`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from loadtest.client.records import SUCCEEDED, Records
from loadtest.client.server_check import Served
from loadtest.config import LoadTestConfig, Scenario
from loadtest.judging.latency import OF_TOKENS, distribution, latency_values
from loadtest.judging.statistics import Statistics
from loadtest.judging.verdict import Judgement, worst
from loadtest.report.answer_schema import AnswerFigures, CancellationFigures, Endings, RepeatFigures
from loadtest.report.schema import (
    SCHEMA_VERSION,
    Arrivals,
    Calibration,
    Client,
    EndpointReport,
    FailureClass,
    GpuFigures,
    ImageFigures,
    LoadReport,
    ModelFigures,
    Requests,
    ScenarioReport,
    Server,
    WorkloadReport,
)
from loadtest.report.soak_schema import OverTime
from tuneline.core.artifact import Input
from tuneline.core.endpoint import Endpoint
from tuneline.core.environment import environment_facts


@dataclass(frozen=True)
class Result:
    """One scenario, measured and judged."""

    scenario: Scenario
    records: Records
    stats: Statistics
    client: Client
    judgement: Judgement
    plan_digest: str
    """Equal for runs that ask the same at the same times."""
    models: list[str]
    """The served name that each row of `records` asked."""
    calibration: Calibration | None
    server: Server | None
    """The server's own figures over the same window; None if it shows none."""
    examples: dict[str, list[str]]
    """Up to three messages per class of failure."""
    text_sample: list[str]
    start_unix_s: float
    answers: AnswerFigures | None = None
    repeats: RepeatFigures | None = None
    cancellations: CancellationFigures | None = None
    over_time: OverTime | None = None
    images: ImageFigures | None = None
    gpu: GpuFigures | None = None
    endings: Endings | None = None
    of_tokens: bool = True
    """Answers are streams of tokens, not documents with vectors or scores."""
    is_spilled: bool = False
    """The records lie on disk; `records` is a sample of them."""
    model_figures: dict[str, ModelFigures] | None = None
    """Of a long run; a short run's come from its records."""


def load_report(
    config: LoadTestConfig,
    endpoint: Endpoint,
    served: Served,
    inputs: Sequence[Input],
    results: Sequence[Result],
) -> LoadReport:
    """Return the report of all scenarios."""
    return LoadReport(
        schema_version=SCHEMA_VERSION,
        verdict=worst([result.judgement.verdict for result in results]),
        problems=[
            f"{result.scenario.name}: {problem}"
            for result in results
            for problem in result.judgement.problems
        ],
        endpoint=endpoint_report(endpoint, served),
        inputs=list(inputs),
        workload=WorkloadReport(
            **config.workload.model_dump(),
            max_tokens=config.max_tokens,
            ignore_eos=config.ignore_eos,
            extra_body=config.extra_body,
            seed=config.seed,
        ),
        scenarios=[scenario_report(config, result) for result in results],
        environment=environment_facts(),
    )


def endpoint_report(endpoint: Endpoint, served: Served) -> EndpointReport:
    """Return what was measured."""
    return EndpointReport(
        url=endpoint.url,
        model=endpoint.model,
        served_names=served.names,
        artifact_name=served.artifact_name,
        artifact_short_digest=served.short_digest,
        server=served.server,
        is_listed=served.is_listed,
        engine=served.engine,
    )


def scenario_report(config: LoadTestConfig, result: Result) -> ScenarioReport:
    """Return the report of one scenario."""
    stats, judgement = result.stats, result.judgement
    of_tokens = result.of_tokens
    return ScenarioReport(
        name=result.scenario.name,
        verdict=judgement.verdict,
        problems=judgement.problems,
        warnings=judgement.warnings,
        config=result.scenario,
        plan_digest=result.plan_digest,
        slo=result.scenario.slo or config.slo,
        objectives=judgement.objectives,
        within=stats.within,
        start_unix_s=result.start_unix_s,
        requests=Requests(
            offered=stats.num_offered,
            succeeded=stats.num_succeeded,
            failed=stats.num_failed,
            unfinished=stats.num_unfinished,
            cancelled=stats.num_cancelled,
            warmup=stats.num_warmup,
            error_rate=stats.failed.value,
            error_rate_ci95=stats.failed.ci95,
        ),
        errors={
            name: FailureClass(count=count, examples=result.examples.get(name, []))
            for name, count in stats.errors.items()
        },
        retry_after_s=stats.retry_after_s,
        latency={
            name: one for name, one in stats.latencies.items() if of_tokens or name not in OF_TOKENS
        },
        throughput=stats.throughput
        if stats.good is None
        else stats.throughput.model_copy(
            update={"goodput_share": stats.good.value, "goodput_share_ci95": stats.good.ci95}
        ),
        tokens=stats.tokens,
        arrivals=Arrivals(scheduled=stats.arrivals_scheduled, delivered=stats.arrivals_delivered),
        mean_in_flight=stats.mean_in_flight,
        steady_state=stats.steady_state,
        models=_per_model(result),
        sessions=stats.sessions,
        answers=result.answers,
        repeats=result.repeats,
        cancellations=result.cancellations,
        client=result.client,
        calibration=result.calibration,
        server=result.server,
        text_sample=result.text_sample,
        over_time=result.over_time if of_tokens else _without_tokens(result.over_time),
        images=result.images,
        gpu=result.gpu,
        endings=result.endings,
        spilled=result.is_spilled,
    )


def _without_tokens(found: OverTime | None) -> OverTime | None:
    """Return the blocks of a run whose answers come whole."""
    if found is None:
        return None
    nothing: list[None] = [None] * len(found.time_s)
    drifts = [one for one in found.drifts if one.name not in OF_TOKENS]
    return found.model_copy(update={"ttft_p50_s": nothing, "tpot_p50_s": nothing, "drifts": drifts})


def _per_model(result: Result) -> dict[str, ModelFigures] | None:
    """Return the figures of each served name of a mix; None for a single name."""
    found = result.model_figures if result.is_spilled else _counted(result)
    if found is None or result.of_tokens:
        return found
    nothing = {"ttft_s": None, "tpot_s": None}
    return {name: one.model_copy(update=nothing) for name, one in found.items()}


def _counted(result: Result) -> dict[str, ModelFigures] | None:
    import numpy as np

    names = sorted(set(result.models))
    if len(names) < 2:
        return None
    asked = np.array(result.models)
    found = {}
    for name in names:
        rows = result.records.select((asked == name) & ~result.records.warmup)
        values = latency_values(rows)
        found[name] = ModelFigures(
            offered=len(rows),
            succeeded=int(np.sum(rows.state == SUCCEEDED)),
            ttft_s=distribution(values["ttft_s"]),
            tpot_s=distribution(values["tpot_s"]),
            e2e_s=distribution(values["e2e_s"]),
        )
    return found


def summary_metrics(report: LoadReport) -> dict[str, Any]:
    """Return what the manifest keeps of the report."""
    return {
        "verdict": report.verdict,
        "problems": report.problems,
        "scenarios": {
            scenario.name: {
                "num_succeeded": scenario.requests.succeeded,
                "num_offered": scenario.requests.offered,
                **{
                    metric: scenario.latency[metric].percentiles
                    for metric in ("ttft_s", "tpot_s", "e2e_s")
                    if metric in scenario.latency
                },
                "output_tokens_per_s": scenario.throughput.output_tokens_per_s,
            }
            for scenario in report.scenarios
        },
    }
