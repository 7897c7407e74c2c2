"""The figures of a load report as named metrics, for the forms that monitoring systems read."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from loadtest.client.records import STATES
from loadtest.judging.verdict import SEVERITY
from loadtest.percentiles import percentile_of
from loadtest.report.schema import LoadReport, ScenarioReport
from loadtest.report.terminal import has_tokens


@dataclass(frozen=True)
class MetricPoint:
    """One value of a metric."""

    name: str
    """Without a prefix, such as `ttft`."""
    unit: str
    """By UCUM, as OpenTelemetry takes it: `s`, `1`, `{token}/s`."""
    value: float
    labels: dict[str, str | float]
    at_unix_s: float


def metric_points(report: LoadReport) -> Iterator[MetricPoint]:
    """Return every figure of a report that a monitoring system would follow."""
    for scenario in report.scenarios:
        labels: dict[str, str | float] = {
            "scenario": scenario.name,
            "model": report.endpoint.model,
            "digest": report.endpoint.artifact_short_digest or "",
        }
        end_s = scenario.start_unix_s + scenario.throughput.window_s
        yield from _of_run(scenario, labels, end_s)
        yield from _over_time(scenario, labels)


def _of_run(
    scenario: ScenarioReport, labels: dict[str, str | float], end_s: float
) -> Iterator[MetricPoint]:
    for metric, found in scenario.latency.items():
        name = metric.removesuffix("_s")
        for percentile, value in found.percentiles.items():
            if value is not None:
                quantile = round(percentile_of(percentile) / 100, 6)
                yield MetricPoint(name, "s", value, {**labels, "quantile": quantile}, end_s)
    requests = scenario.requests
    counts = (requests.succeeded, requests.failed, requests.unfinished, requests.cancelled)
    for state, count in zip(STATES, counts, strict=True):
        yield MetricPoint("requests", "{request}", count, {**labels, "state": state}, end_s)
    rates = scenario.throughput
    of_tokens = has_tokens(scenario)
    for name, unit, rate in (
        ("request_rate", "{request}/s", rates.succeeded_rps),
        ("goodput", "{request}/s", rates.goodput_rps),
        ("output_token_rate", "{token}/s", rates.output_tokens_per_s if of_tokens else None),
        ("prompt_token_rate", "{token}/s", rates.prompt_tokens_per_s),
        ("error_share", "1", requests.error_rate),
    ):
        if rate is not None:
            yield MetricPoint(name, unit, rate, labels, end_s)
    if scenario.gpu is not None:
        yield MetricPoint("gpu.energy", "J", scenario.gpu.energy_j, labels, end_s)
    for verdict in reversed(SEVERITY):
        is_it = float(scenario.verdict == verdict)
        yield MetricPoint("verdict", "1", is_it, {**labels, "verdict": verdict.value}, end_s)


def _over_time(scenario: ScenarioReport, labels: dict[str, str | float]) -> Iterator[MetricPoint]:
    found = scenario.over_time
    if found is None:
        return
    start_s = scenario.start_unix_s
    nothing: list[float | None] = [None] * len(found.time_s)
    rates = found.output_tokens_per_s if has_tokens(scenario) else nothing
    ends = [start_s + at + found.block_s for at in found.time_s]
    for name, unit, values in (
        ("block.ttft", "s", found.ttft_p50_s),
        ("block.tpot", "s", found.tpot_p50_s),
        ("block.e2e", "s", found.e2e_p50_s),
        ("block.output_token_rate", "{token}/s", rates),
        ("block.request_rate", "{request}/s", found.succeeded_rps),
    ):
        for at_s, value in zip(ends, values, strict=True):
            if value is not None:
                yield MetricPoint(name, unit, value, labels, at_s)
    for name, unit, values in (
        ("server.memory", "MiBy", found.server_memory_mib),
        ("server.kv_cache_usage", "1", found.kv_cache_usage),
    ):
        for at_s, value in zip(found.server_time_s, values, strict=True):
            if value is not None:
                yield MetricPoint(name, unit, value, labels, start_s + at_s)
