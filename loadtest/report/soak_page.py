"""The run over time as plots and as words: medians by block, the server's memory, drifts."""

from __future__ import annotations

from collections.abc import Sequence

from loadtest.report.schema import LoadReport
from loadtest.report.soak_schema import Drift, OverTime
from loadtest.report.terminal import has_tokens
from tuneline.core.page.blocks import Plot
from tuneline.core.page.numbers import (
    digits,
    seconds,
    share,
    short_seconds,
    signed_digits,
    whole_share,
)
from tuneline.core.page.plot import Axis, Point, Series, line_plot

MIN_POINTS = 20
"""A shorter run shows each request in place of medians."""
NAMES = {
    "ttft_s": "median TTFT",
    "tpot_s": "median TPOT",
    "e2e_s": "median end to end",
    "server_memory_mib": "server memory",
    "kv_cache_usage": "KV cache usage",
}


def soak_plots(report: LoadReport) -> list[Plot]:
    """Return the plots of all scenarios that are long enough."""
    plots = []
    for scenario in report.scenarios:
        if scenario.over_time is not None and len(scenario.over_time.time_s) >= MIN_POINTS:
            plots += _plots(scenario.name, scenario.over_time, has_tokens(scenario))
    return plots


def _plots(name: str, found: OverTime, of_tokens: bool) -> list[Plot]:
    across = Axis("time in the run", show=seconds, tick=short_seconds, limits=(0.0, None))
    up = Axis("median", show=seconds, tick=short_seconds, limits=(0.0, None))
    latencies = [Series("end to end", _points(found.time_s, found.e2e_p50_s))]
    if of_tokens:
        latencies.insert(0, Series("TTFT", _points(found.time_s, found.ttft_p50_s)))
    plots = []
    if any(one.points for one in latencies):
        says = _says(found, ("ttft_s", "e2e_s") if of_tokens else ("e2e_s",))
        plots.append(line_plot(f"Median latency of {name}", latencies, across, up, says=says))
    memory = _points(found.server_time_s, found.server_memory_mib)
    if len(memory) > 1:
        axis = Axis("MiB", show=digits, limits=(0.0, None))
        says = _says(found, ("server_memory_mib",))
        series = [Series("resident memory", memory)]
        plots.append(line_plot(f"Server memory in {name}", series, across, axis, says=says))
    cache = _points(found.server_time_s, found.kv_cache_usage)
    if len(cache) > 1:
        axis = Axis("used share", show=share, tick=whole_share, limits=(0.0, 1.0))
        says = _says(found, ("kv_cache_usage",))
        series = [Series("KV cache", cache)]
        plots.append(line_plot(f"KV cache in {name}", series, across, axis, says=says))
    return plots


def _points(times_s: Sequence[float], values: Sequence[float | None]) -> list[Point]:
    pairs = zip(times_s, values, strict=True)
    return [(at, value) for at, value in pairs if value is not None]


def _says(found: OverTime, names: Sequence[str]) -> str:
    return " ".join(f"{drift_text(found.drift(name))}." for name in names)


def drift_text(drift: Drift) -> str:
    """Return a drift in words."""
    name = NAMES[drift.name]
    if drift.per_hour is None or drift.level is None:
        return f"{name}: {drift.without_interval}"
    unit = "" if drift.unit == "1" else f" {drift.unit}"
    text = f"{name} {digits(drift.level)}{unit}, {signed_digits(drift.per_hour)}{unit} per hour"
    if drift.ci95 is not None:
        text += f" ({signed_digits(drift.ci95[0])} to {signed_digits(drift.ci95[1])})"
    return text
