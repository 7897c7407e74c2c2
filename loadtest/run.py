"""One load test: every scenario of the configuration against one endpoint, and its report."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from loadtest.calibration.calibrate import Calibration, calibrate
from loadtest.client.plan import SUCCEEDED, Plan, Records
from loadtest.client.planning import make_plan, plan_digest, with_unsent
from loadtest.client.probe import Served, probe
from loadtest.client.processes import Counters, Measured, run_workers
from loadtest.config import LoadTestConfig, Scenario
from loadtest.judging.server_metrics import (
    Scrape,
    deltas,
    reconcile,
    scrape,
    settled_scrape,
)
from loadtest.judging.statistics import client_figures, statistics
from loadtest.judging.verdict import judge
from loadtest.report import terminal as report_files
from loadtest.report.build import Result, report_document, summary_metrics
from loadtest.workload.requests import Workload, read_prompts
from tuneline.core.artifact import Artifact, Input, new_artifact, open_artifact
from tuneline.core.digests import short_digest
from tuneline.core.endpoint import Endpoint
from tuneline.core.errors import ConfigError, ServerError
from tuneline.core.messages import Messages
from tuneline.core.progress import logger, progress

__all__ = ["read_prompts", "run_loadtest"]

GiveUp = Callable[[Counters], bool]


def run_loadtest(
    config: LoadTestConfig,
    endpoint: Endpoint,
    out: Path,
    *,
    prompts: Sequence[Messages],
    inputs: Sequence[Input] = (),
) -> Artifact:
    """Measure `endpoint` and write an artifact of kind `load-report`.

    The verdict stands in the report and in the manifest's metrics; it raises nothing.

    Args:
        config: What to send and what must hold.
        endpoint: Where to.
        out: Where the artifact goes.
        prompts: Chat messages of each prompt; requests take them in an order drawn from the seed.
        inputs: The artifacts that the endpoint is known to serve.

    Raises:
        ServerError: The endpoint does not answer as an OpenAI-compatible server that serves the
            model, or serves another artifact than `inputs` say.
        ConfigError: There are no prompts.
        DataError: A workload file cannot be used.
    """
    if not prompts and config.workload.source == "prompts":
        raise ConfigError("the load test has no prompts; expected at least one")
    served = probe_artifact(config, endpoint, inputs)
    resolved = config.model_dump(mode="json")
    with new_artifact(out, "load-report", config=resolved, inputs=inputs) as draft:
        results = [
            _measure_until_valid(config, number, endpoint, prompts)
            for number in range(len(config.scenarios))
        ]
        document = report_document(config, endpoint, served, inputs, results)
        write_report(document, results, draft.dir)
        draft.metrics.update(summary_metrics(document))
    for line in report_files.lines(document):
        logger.info("%s", line)
    return open_artifact(out)


def _measure_until_valid(
    config: LoadTestConfig, number: int, endpoint: Endpoint, prompts: Sequence[Messages]
) -> Result:
    """Measure a scenario, and the same once more where the client or its host was in the way: what
    voids the first try is their own lag, whatever the server's latencies were. Not where a request
    failed or did not end: a second try could hide that."""
    scenario = config.scenarios[number]
    seed = config.seed + number
    first = measure_scenario(config, scenario, endpoint, prompts, seed=seed)
    all_succeeded = first.stats.num_failed == first.stats.num_unfinished == 0
    if not (first.judgement.is_worth_repeating and all_succeeded):
        return first
    reason = first.judgement.problems[0]
    logger.warning("%s: INVALID (%s); it is measured once more", scenario.name, reason)
    result = measure_scenario(config, scenario, endpoint, prompts, seed=seed)
    said = f"measured twice: the first time was INVALID ({reason})"
    if config.workload.source in ("prompts", "sharegpt") and not config.workload.unique_prompts:
        said += "; the server's prefix cache may hold that run's prompts"
    judgement = replace(result.judgement, warnings=[*result.judgement.warnings, said])
    return replace(result, judgement=judgement)


def probe_artifact(config: LoadTestConfig, endpoint: Endpoint, inputs: Sequence[Input]) -> Served:
    """Ask the endpoint what it serves, and hold it against what it should.

    Raises:
        ServerError: See `run_loadtest`.
    """
    served = probe(endpoint)
    absent = sorted(set(config.workload.models or ()) - set(served.names))
    if absent:
        raise ServerError(
            f"{endpoint.url}: does not serve {', '.join(absent)} of workload.models; it serves "
            f"{', '.join(served.names)}"
        )
    digests = {
        short_digest(entry.digest): entry for entry in inputs if entry.kind in ("model", "adapter")
    }
    if served.short_digest and digests and served.short_digest not in digests:
        raise ServerError(
            f"{endpoint.url}: serves {served.artifact_name}; expected the artifact "
            f"{' or '.join(digests)}",
            hint="Another run's server may hold that port.",
        )
    return served


def write_report(document: dict[str, Any], results: Sequence[Result], directory: Path) -> None:
    """`report.json`, the raw records, and the plots."""
    text = json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False)
    (directory / "report.json").write_text(text + "\n", encoding="utf-8")
    for result in results:
        result.records.save(directory / f"records-{result.scenario.name}.npz")
    report_files.plot(results, directory)


def measure_scenario(
    config: LoadTestConfig,
    scenario: Scenario,
    endpoint: Endpoint,
    prompts: Sequence[Messages],
    *,
    seed: int,
    give_up: GiveUp = lambda _: False,
    calibration: Calibration | None = None,
    permutation_seed: int | None = None,
) -> Result:
    """Calibrate, run one scenario, read the server's own figures, and judge.

    Args:
        config: Common options.
        scenario: What to run.
        endpoint: Where to.
        prompts: For `workload.source: prompts`.
        seed: Of arrivals and order.
        give_up: Asked each second; True ends the run, and what is in flight stays unfinished.
        calibration: An earlier one that holds for this load.
        permutation_seed: As of `build_workload`.
    """
    plan, workload = make_plan(
        config, scenario, endpoint, prompts, seed=seed, permutation_seed=permutation_seed
    )
    if calibration is None and config.calibrate:
        calibration = calibrate(config, scenario, tls=plan.tls, trace_s=plan.arrivals_s or ())
    before = scrape(endpoint)
    measured = run_plan(scenario.name, plan, endpoint.api_key, give_up)
    server = None
    if before is not None:
        ok = measured.records.select(measured.records.state == SUCCEEDED)
        after = settled_scrape(endpoint, before, float(np.nansum(ok.tokens)))
        server = None if after is None else server_figures(before, after, measured.records)
    return judged(config, scenario, plan, workload, measured, calibration, server)


def run_plan(
    label: str,
    plan: Plan,
    key: str | None,
    give_up: GiveUp = lambda _: False,
    *,
    workers: range | None = None,
    start: Callable[[], float] | None = None,
) -> Measured:
    """Run a plan, or the part of it that falls to `workers`, behind a progress display."""
    total = plan.num_requests if plan.arrivals_s is None else len(plan.arrivals_s)
    with progress(f"load test {label}", total, "requests") as advance:

        def watch(counters: Counters) -> bool:
            advance(
                counters.num_answered + counters.num_failed,
                f"{counters.num_in_flight} in flight, {counters.num_answered} ok, "
                f"{counters.num_failed} failed",
            )
            return give_up(counters)

        return run_workers(plan, key, watch, workers=workers, start=start)


def server_figures(before: Scrape, after: Scrape, records: Records) -> dict[str, Any]:
    """The server's own figures between two scrapes, reconciled with all requests' records."""
    ok = records.select(records.state == SUCCEEDED)
    figures = deltas(before, after)
    client: dict[str, float | None] = {"generation_tokens": float(np.nansum(ok.tokens))}
    if len(ok):
        client["mean_ttft_s"] = float(np.mean(ok.first_token_s - ok.sent_s))
        client["mean_e2e_s"] = float(np.mean(ok.last_token_s - ok.sent_s))
    rows, warnings = reconcile(figures, client)
    return {"figures": figures, "reconciliation": rows, "warnings": warnings}


def judged(
    config: LoadTestConfig,
    scenario: Scenario,
    plan: Plan,
    workload: Workload,
    measured: Measured,
    calibration: Calibration | None = None,
    server: dict[str, Any] | None = None,
) -> Result:
    """Figures and verdict of what was measured."""
    records = with_unsent(plan, measured.records)
    slo = scenario.slo or config.slo
    bodies = [plan.body_of[int(index) % len(plan.body_of)] for index in records.index]
    asked = np.array([workload.output_tokens[body] for body in bodies], np.float64)
    stats = statistics(
        records,
        slo,
        exact_tokens=asked if config.ignore_eos else None,
        duration_s=scenario.duration_s,
        ended_early=measured.ended_early,
    )
    client = client_figures(measured.workers)
    examples: dict[str, list[str]] = {}
    for worker in measured.workers:
        for name, messages in worker["examples"].items():
            examples[name] = (examples.get(name, []) + messages)[:3]
    hit_rate = server["figures"]["prefix_hit_rate"] if server else None
    if hit_rate is None and stats.tokens.num_cached_prompt_tokens is not None:
        hit_rate = stats.tokens.num_cached_prompt_tokens / max(stats.tokens.num_prompt_tokens, 1)
    judgement = judge(
        config,
        slo,
        stats,
        client,
        open_loop=scenario.loop == "open",
        calibration=calibration,
        prefix_hit_rate=hit_rate,
    )
    if server is not None:
        judgement = replace(judgement, warnings=judgement.warnings + server["warnings"])
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
        examples=examples,
        text_sample=[text for worker in measured.workers for text in worker["text_sample"]][:3],
        start_unix_s=measured.start_unix_s,
    )
