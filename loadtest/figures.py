"""From a measured run to its figures: of all records in memory, or from the files of a long run."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from loadtest.client.plan import Plan
from loadtest.client.prepare import with_unsent
from loadtest.client.processes import Measured
from loadtest.client.records import CANCELLED, SUCCEEDED, Records, concatenate
from loadtest.config import LoadTestConfig, Scenario
from loadtest.histogram import Histogram
from loadtest.judging.answers import repeat_figures
from loadtest.judging.blocks import Blocks, make_grid, rate_interval
from loadtest.judging.cancellations import Left, left_of
from loadtest.judging.latency import raw_values
from loadtest.judging.long_reading import read_long_run, sample_of
from loadtest.judging.long_run import counted, left_of_long_run, long_statistics
from loadtest.judging.statistics import Statistics, statistics
from loadtest.judging.window import window_of
from loadtest.report.answer_schema import RepeatFigures
from loadtest.report.schema import ImageFigures, ModelFigures
from loadtest.workload.build import Workload

MAX_REPEAT_ROWS = 20_000
"""Rows of a long run in which repeated prompts are looked for."""


@dataclass(frozen=True)
class Figures:
    """Figures from the records of a run."""

    records: Records
    """All of them, or a sample of a long run."""
    stats: Statistics
    blocks: Blocks | None
    models: dict[str, ModelFigures] | None
    """Of a long run with a mix of served names; a short run's come from its records."""
    repeats: RepeatFigures | None
    num_asked: int
    """Measured requests that ask a prompt of the reference."""
    totals: dict[str, float | None]
    """`generation_tokens`, `mean_ttft_s` and `mean_e2e_s` from the sent time, by the client."""
    left: Left


def figures_of(
    config: LoadTestConfig, scenario: Scenario, plan: Plan, workload: Workload, measured: Measured
) -> Figures:
    """Return the figures of a run."""
    if measured.spills:
        return _from_disk(config, scenario, plan, workload, measured)
    return _in_memory(config, scenario, plan, workload, measured)


def images_of(plan: Plan, workload: Workload, measured: Measured) -> ImageFigures | None:
    """Return the images that were sent, without warm-up; None without images in the workload."""
    if not any(count for count, _ in workload.images):
        return None
    of_body = np.array(workload.images, np.int64)
    total = np.zeros(2, np.int64)
    for batch in measured.batches():
        sent = batch.index[~np.isnan(batch.sent_s) & ~batch.warmup]
        places = np.array([plan.body_place(int(index)) for index in sent], np.int64)
        total += of_body[places].sum(axis=0)
    num_sent, num_bytes = (int(value) for value in total)
    return ImageFigures(num_sent=num_sent, mean_url_bytes=num_bytes / max(num_sent, 1))


def is_check(plan: Plan, records: Records) -> NDArray[np.bool_]:
    """Return which requests ask a prompt of the reference."""
    if plan.num_unchecked is None:
        return np.zeros(len(records), np.bool_)
    return np.array([plan.check_of(int(index)) is not None for index in records.index], np.bool_)


def asked_tokens(plan: Plan, workload: Workload, records: Records) -> NDArray[np.float64]:
    """Return the exact length of each answer. The reference's answers end by themselves."""
    bodies = [plan.body_place(int(index)) for index in records.index]
    asked = np.array([workload.output_tokens[body] for body in bodies], np.float64)
    return np.where(is_check(plan, records), records.tokens, asked)


def client_totals(records: Records) -> dict[str, float | None]:
    """Return the client's figures that the server has, too; warm-up counts."""
    ok = records.select(records.state == SUCCEEDED)
    found: dict[str, float | None] = {"generation_tokens": float(np.nansum(ok.tokens))}
    if len(ok):
        found["mean_ttft_s"] = float(np.mean(ok.first_token_s - ok.sent_s))
        found["mean_e2e_s"] = float(np.mean(ok.last_token_s - ok.sent_s))
    return found


def _in_memory(
    config: LoadTestConfig, scenario: Scenario, plan: Plan, workload: Workload, measured: Measured
) -> Figures:
    records = with_unsent(plan, measured.records)
    slo = scenario.slo or config.slo
    duration_s = None if plan.trace_ends else scenario.duration_s
    window = window_of(records, duration_s, is_open=plan.arrivals_s is not None)
    stats = statistics(
        records,
        slo,
        exact_tokens=asked_tokens(plan, workload, records) if config.ignore_eos else None,
        window=window,
        ended_early=measured.ended_early,
        num_turns=None if plan.sessions is None else plan.sessions.num_turns,
        kept_share=None if plan.sessions is None else plan.sessions.kept_share,
        agents=plan.sessions if plan.sessions is not None and plan.sessions.lanes else None,
    )
    ended = ~np.isnan(records.end_s) & ~records.warmup & (records.state != CANCELLED)
    lengths = (records.end_s - records.intended_s)[ended]
    grid = make_grid(window, float(np.mean(lengths)) if len(lengths) else 0.0)
    blocks = None
    if grid is not None:
        blocks = Blocks(grid, slo)
        blocks.add(records)
        if window.name == "arrivals":
            stats = replace(stats, throughput=_with_intervals(stats, blocks))
    bodies = [plan.body_place(int(index)) for index in records.index]
    declared = config.workload.min_repeat_ttft_share
    asks = is_check(plan, records) & ~records.warmup & (records.state != CANCELLED)
    return Figures(
        records=records,
        stats=stats,
        blocks=blocks,
        models=None,
        repeats=None if plan.sessions else repeat_figures(records, bodies, declared),
        num_asked=int(np.sum(asks)),
        totals=client_totals(records),
        left=left_of(records),
    )


def _with_intervals(stats: Statistics, blocks: Blocks) -> Any:
    """Return the throughput with the intervals of its rates."""
    intervals = {
        "succeeded_rps_ci95": rate_interval(blocks.ended, blocks.grid),
        "output_tokens_per_s_ci95": rate_interval(blocks.tokens, blocks.grid),
    }
    if blocks.slo.has_goodput:
        intervals["goodput_rps_ci95"] = rate_interval(blocks.good_ended, blocks.grid)
    return stats.throughput.model_copy(update=intervals)


def _from_disk(
    config: LoadTestConfig, scenario: Scenario, plan: Plan, workload: Workload, measured: Measured
) -> Figures:
    slo = scenario.slo or config.slo

    def asked(records: Records) -> NDArray[np.float64] | None:
        return asked_tokens(plan, workload, records) if config.ignore_eos else None

    run, blocks = read_long_run(
        measured.batches,
        slo,
        asked=asked,
        duration_s=None if plan.trace_ends else scenario.duration_s,
        arrivals_s=plan.arrivals_s,
    )
    offered = plan.num_requests if plan.arrivals_s is None else len(plan.arrivals_s)
    num_unsent = 0 if offered is None else max(offered - run.num_rows, 0)
    return Figures(
        records=sample_of(run),
        stats=long_statistics(run, blocks, num_unsent=num_unsent, ended_early=measured.ended_early),
        blocks=blocks,
        models=_models(plan, workload, measured),
        repeats=_repeats(config, plan, measured),
        num_asked=_num_asked(plan, measured),
        totals=run.totals(),
        left=left_of_long_run(run),
    )


def _num_asked(plan: Plan, measured: Measured) -> int:
    if plan.num_unchecked is None:
        return 0
    return sum(
        int(np.sum(is_check(plan, one) & ~one.warmup & (one.state != CANCELLED)))
        for one in measured.batches()
    )


def _repeats(config: LoadTestConfig, plan: Plan, measured: Measured) -> RepeatFigures | None:
    """Return the figures of repeated prompts among the first rows of a long run."""
    parts: list[Records] = []
    for batch in measured.batches():
        parts.append(batch.without_events())
        if sum(map(len, parts)) >= MAX_REPEAT_ROWS:
            break
    records = concatenate(parts)
    bodies = [plan.body_place(int(index)) for index in records.index]
    return repeat_figures(records, bodies, config.workload.min_repeat_ttft_share)


def _models(plan: Plan, workload: Workload, measured: Measured) -> dict[str, ModelFigures] | None:
    """Return the figures of each served name of a mix; None for a single name."""
    if len(set(workload.models)) < 2:
        return None
    names = ("ttft_s", "tpot_s", "e2e_s")
    found: dict[str, tuple[list[int], dict[str, Histogram]]] = {
        name: ([0, 0], {metric: Histogram() for metric in names})
        for name in sorted(set(workload.models))
    }
    for batch in measured.batches():
        asked = np.array([workload.models[plan.body_place(int(one))] for one in batch.index])
        for name, (counts, histograms) in found.items():
            rows = batch.select((asked == name) & ~batch.warmup)
            counts[0] += len(rows)
            counts[1] += int(np.sum(rows.state == SUCCEEDED))
            values = raw_values(rows)
            for metric in names:
                histograms[metric].add(values[metric])
    return {
        name: ModelFigures(
            offered=counts[0],
            succeeded=counts[1],
            **{metric: counted(one) for metric, one in histograms.items()},
        )
        for name, (counts, histograms) in found.items()
    }


def models_of(plan: Plan, workload: Workload, records: Records) -> list[str]:
    """Return the served name that each request asked."""
    return [workload.models[plan.body_place(int(index))] for index in records.index]
