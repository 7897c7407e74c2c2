"""The plots of the page of a load report: objectives, curves, and the run over time."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from loadtest.client.records import CANCELLED, SUCCEEDED, Records
from loadtest.judging.latency import latency_values
from loadtest.percentiles import name_of
from loadtest.report.schema import LoadReport, ScenarioReport
from loadtest.report.terminal import has_tokens
from tuneline.core.page.blocks import Plot
from tuneline.core.page.numbers import digits, seconds, share, short_seconds, whole_share
from tuneline.core.page.plot import Axis, Mark, Row, Rule, Series, line_plot, row_plot

Measured = Sequence[tuple[ScenarioReport, Records]]
NUM_BINS = 24
MAX_POINTS = 240
"""Of one curve or one cloud; a plot has no more pixels to show them."""
NAMES = {
    "ttft_s": "TTFT",
    "tpot_s": "TPOT",
    "worst_gap_s": "worst gap",
    "e2e_s": "end to end",
    "session_s": "conversation",
    "session_wait_s": "waiting in it",
}


def plots_against_limits(report: LoadReport) -> list[Plot]:
    """Return one plot of every latency objective as a share of its limit."""
    rows = []
    for scenario in report.scenarios:
        for metric, limits in scenario.slo.latency.items():
            for q, limit in limits.items():
                found = scenario.latency[metric]
                value, interval = found.at(q), found.ci95.get(name_of(q), (None, None))
                if value is None:
                    continue
                low, high = interval
                ends = None if low is None or high is None else (low / limit, high / limit)
                label = f"{NAMES[metric]} {name_of(q)}, {scenario.name}"
                says = f"{seconds(value)} of {seconds(limit)}"
                rows.append(Row(label, says, [Mark(value / limit)], ends, [Mark(1.0, 1)]))
    if not rows:
        return []
    axis = Axis("share of the limit", show=share, tick=whole_share, limits=(0.0, None))
    return [row_plot("Latency objectives", rows, axis, legend=("measured", "limit"))]


def curve_plots(measured: Measured) -> list[Plot]:
    """Return the share of requests that end within a time, for TTFT and for the whole answer."""
    plots = []
    shown = [("ttft_s", "Time to first token"), ("e2e_s", "End-to-end latency")]
    # The first token of a document with vectors or scores is its end.
    for name, title in shown if _has_tokens(measured) else shown[1:]:
        curves, says = [], []
        for scenario, records in measured:
            values = np.sort(latency_values(records.select(~records.warmup))[name])
            finite = np.isfinite(values)
            if not finite.any():
                continue
            # A failed request is infinitely slow, so the curve stays below 1.
            shares = np.arange(1, len(values) + 1) / len(values)
            kept = _thinned(int(finite.sum()))
            points = list(zip(values[kept].tolist(), shares[kept].tolist(), strict=True))
            curves.append(Series(scenario.name, points, "step"))
            ends = scenario.latency[name].percentiles
            figures = ", ".join(f"{q} {seconds(ends[q])}" for q in ends if ends[q] is not None)
            says.append(f"{scenario.name}: {figures}, N {scenario.latency[name].n}.")
        if curves:
            x = Axis("from the intended time", show=seconds, tick=short_seconds, limits=(0.0, None))
            y = Axis("share of requests", show=share, tick=whole_share, limits=(0.0, 1.0))
            plots.append(line_plot(title, curves, x, y, says=" ".join(says)))
    return plots


def plots_over_time(measured: Measured) -> list[Plot]:
    """Return each request's TTFT over the run, and the tokens per second over the run."""
    clouds, rates, failures, says = [], [], [], []
    for scenario, records in measured:
        ok = (records.state == SUCCEEDED) & ~records.warmup
        is_failure = ~np.isin(records.state, (SUCCEEDED, CANCELLED)) & ~records.warmup
        failures += records.intended_s[is_failure].tolist()
        ttft = records.first_token_s - records.intended_s
        rows = np.flatnonzero(ok & np.isfinite(ttft))
        rows = rows[_thinned(len(rows))]
        cloud = zip(records.intended_s[rows].tolist(), ttft[rows].tolist(), strict=True)
        clouds.append(Series(scenario.name, list(cloud), "dots"))
        rates.append(Series(scenario.name, _tokens_per_s(scenario, records), "step"))
        found = scenario.throughput.output_tokens_per_s
        says.append(f"{scenario.name}: {digits(found)} output tokens/s over the window.")
    x = Axis("time in the run", show=seconds, tick=short_seconds, limits=(0.0, None))
    plots = []
    if any(cloud.points for cloud in clouds):
        known = [at for at in failures if np.isfinite(at)]
        rules = [Rule(known[place]) for place in _thinned(len(known))]
        num_failed = sum(one.requests.failed + one.requests.unfinished for one, _ in measured)
        which = "each is" if len(rules) == num_failed else f"{len(rules)} are shown, each as"
        of_tokens = _has_tokens(measured)
        name = "time to first token" if of_tokens else "end-to-end latency"
        y = Axis(name, show=seconds, tick=short_seconds, limits=(0.0, None))
        spoken = " ".join(_described(cloud) for cloud in clouds if cloud.points)
        spoken += f" {num_failed} requests failed; {which} a vertical line."
        title = f"{'TTFT' if of_tokens else 'Latency'} of each request"
        plots.append(line_plot(title, clouds, x, y, says=spoken, rules=rules))
    if any(rate.points for rate in rates):
        y = Axis("output tokens/s", limits=(0.0, None))
        plots.append(line_plot("Throughput over the run", rates, x, y, says=" ".join(says)))
    return plots


def _has_tokens(measured: Measured) -> bool:
    return any(has_tokens(scenario) for scenario, _ in measured)


def _described(cloud: Series) -> str:
    values = [value for _, value in cloud.points]
    return f"{cloud.label}: {seconds(min(values))} to {seconds(max(values))}."


def _tokens_per_s(scenario: ScenarioReport, records: Records) -> list[tuple[float, float]]:
    """Return the output tokens per second in equal parts of a run."""
    if scenario.spilled and (found := scenario.over_time) is not None:
        # The records are a sample; the report has the whole run in blocks.
        return _steps(found.time_s, found.block_s, found.output_tokens_per_s)
    known = np.isfinite(records.event_s) & np.isfinite(records.event_tokens)
    times, tokens = records.event_s[known], records.event_tokens[known]
    if not len(times) or times.max() <= 0:
        return []
    counts, edges = np.histogram(times, NUM_BINS, (0.0, float(times.max())), weights=tokens)
    return _steps(edges[:-1].tolist(), float(edges[1]), (counts / edges[1]).tolist())


def _steps(
    begins: Sequence[float], width: float, heights: Sequence[float]
) -> list[tuple[float, float]]:
    """Return the points of a curve of steps; the last step ends at the end of its part."""
    ends = [(begins[-1] + width, heights[-1])] if begins else []
    return [*zip(begins, heights, strict=True), *ends]


def _thinned(num_values: int) -> list[int]:
    """Return at most MAX_POINTS places, evenly spread, the first and the last among them."""
    if num_values <= MAX_POINTS:
        return list(range(num_values))
    places: list[int] = np.linspace(0, num_values - 1, MAX_POINTS).round().astype(int).tolist()
    return places
