"""Plots of a load test and of a study."""

from __future__ import annotations

from collections.abc import Sequence
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from loadtest.client.records import CANCELLED, SUCCEEDED
from loadtest.judging.latency import latency_values
from loadtest.studies.schema import have_tokens
from tuneline.core.verdict import Verdict

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from loadtest.report.build import Result
    from loadtest.studies.schema import Knee, ParetoPoint, Probe

PLOTTED = "p90"
"""The percentile that is drawn against the load."""

# Fixed margins: a layout that measures every label first takes twice as long.
TWO_PANELS = {"left": 0.075, "right": 0.985, "bottom": 0.13, "top": 0.97, "wspace": 0.19}
ONE_PANEL = {"left": 0.1, "right": 0.97, "bottom": 0.1, "top": 0.97}
ROW_IN, ROW_TOP_IN, ROW_BOTTOM_IN = 2.6, 0.32, 0.56
"""Height of a row, and the part of it above and below the axes, in inches."""


def plot_latency_cdf(results: Sequence[Result], directory: Path, *, of_tokens: bool) -> None:
    """Write `latency_cdf.png`: the share of requests that end within a time."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4))
    names = [("ttft_s", "TTFT"), ("e2e_s", "End-to-end latency")][0 if of_tokens else 1 :]
    margins = TWO_PANELS if of_tokens else ONE_PANEL
    panels = figure.subplots(1, len(names), squeeze=False, gridspec_kw=margins)[0]
    for axes, (name, label) in zip(panels, names, strict=True):
        for result in results:
            measured = result.records.select(~result.records.warmup)
            values = np.sort(latency_values(measured)[name])
            if not len(values):
                continue
            # A failed request is infinitely slow, so the curve stays below 1.
            shares = np.arange(1, len(values) + 1) / len(values)
            finite = np.isfinite(values)
            text = f"{result.scenario.name} (N = {result.stats.latencies[name].n})"
            axes.step(values[finite], shares[finite], where="post", label=text)
        axes.set(xlabel=f"{label} from the intended time, s", ylabel="share of requests")
        axes.set_ylim(0, 1.02)
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend(fontsize="small")
    figure.savefig(directory / "latency_cdf.png", dpi=110)


def plot_latency_over_time(results: Sequence[Result], directory: Path, *, of_tokens: bool) -> None:
    """Write `ttft_over_time.png`: each request's TTFT, and a line for each failure. For vectors and
    scores write `e2e_over_time.png`, with the time of the whole answer."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, ROW_IN * len(results)))
    rows = figure.subplots(len(results), 1, squeeze=False, gridspec_kw=_rows(len(results)))[:, 0]
    for axes, result in zip(rows, results, strict=True):
        records = result.records
        times = records.intended_s
        ok = records.state == SUCCEEDED
        ends_s = records.first_token_s if of_tokens else records.last_token_s
        seconds = ends_s - records.intended_s
        for rows_shown, color, label in (
            (ok & ~records.warmup, "tab:blue", "measured"),
            (ok & records.warmup, "tab:gray", "warm-up"),
        ):
            axes.scatter(times[rows_shown], seconds[rows_shown], s=9, color=color, label=label)
        failed = ~np.isin(records.state, (SUCCEEDED, CANCELLED))
        for time in times[failed & ~np.isnan(times)]:
            axes.axvline(time, color="tab:red", linewidth=0.6)
        label = "TTFT, s" if of_tokens else "end-to-end latency, s"
        axes.set(title=result.scenario.name, xlabel="intended time, s", ylabel=label)
        _from_zero(axes)
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
    name = "ttft_over_time.png" if of_tokens else "e2e_over_time.png"
    figure.savefig(directory / name, dpi=110)


def _from_zero(axes: Axes) -> None:
    """Let the vertical axis begin at 0, with space above the highest point. The space is a share of
    what is shown, so 0 must be shown before the limit is set."""
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set_ylim(bottom=0)


def _rows(number: int) -> dict[str, float]:
    """Return the margins of panels below one another."""
    height = ROW_IN * number
    between = ROW_TOP_IN + ROW_BOTTOM_IN
    return {
        "left": 0.09, "right": 0.985, "bottom": ROW_BOTTOM_IN / height,
        "top": 1 - ROW_TOP_IN / height, "hspace": between / (ROW_IN - between),
    }  # fmt: skip


def plot_loads(
    probes: Sequence[Probe], directory: Path, unit: str, knee: Knee | None = None
) -> None:
    """Write `rates.png`: latency and throughput against the offered rate; or `concurrency.png`,
    against the streams at once, with the knee. `unit` is that of the loads."""
    from matplotlib.figure import Figure

    by_streams = any(probe.concurrency is not None for probe in probes)
    label = f"{unit} at once" if by_streams else f"offered {unit}"
    figure = Figure(figsize=(10, 4))
    left, right = figure.subplots(1, 2, gridspec_kw=TWO_PANELS)
    ordered = sorted(((probe.load, probe) for probe in probes), key=itemgetter(0))
    latencies = [("ttft_s", "TTFT"), ("e2e_s", "end to end")]
    of_tokens = have_tokens(probes)
    for metric, name in latencies if of_tokens else latencies[1:]:
        shown = [
            (load, value)
            for load, probe in ordered
            if (value := probe.latency[metric].get(PLOTTED)) is not None
        ]
        if shown:
            left.plot(*zip(*shown, strict=True), marker="o", label=f"{name} {PLOTTED}")
    left.set(xlabel=label, ylabel="s")
    throughput = "output tokens/s" if of_tokens else "requests/s"
    rates = [
        (load, rate)
        for load, probe in ordered
        if (rate := probe.output_tokens_per_s if of_tokens else probe.succeeded_rps) is not None
    ]
    if rates:
        right.plot(*zip(*rates, strict=True), marker="o", label=throughput)
    right.set(xlabel=label, ylabel=throughput)
    for axes in (left, right):
        for load, probe in ordered:
            if probe.verdict != Verdict.PASS:
                axes.axvline(load, color="tab:red", linewidth=0.6)
        if knee is not None:
            axes.axvline(knee.concurrency, color="tab:gray", linestyle=":", label="knee")
        _from_zero(axes)
        axes.grid(alpha=0.3)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize="small")
    name = "concurrency.png" if by_streams else "rates.png"
    figure.savefig(directory / name, dpi=110)


def plot_pareto(points: Sequence[ParetoPoint], directory: Path) -> None:
    """Write `pareto.png`: tokens/s of the server against tokens/s per user, a line per server.

    The front is drawn in black: no other point has more of both. Hollow points miss an objective.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5.5))
    axes = figure.subplots(gridspec_kw=ONE_PANEL)
    usable = [point for point in points if point.is_usable]
    for number, server in enumerate(dict.fromkeys(point.server for point in usable)):
        own = [point for point in usable if point.server == server]
        color = f"C{number}"
        axes.plot(
            [point.place[0] for point in own], [point.place[1] for point in own],
            color=color, linewidth=0.8, label=server,
        )  # fmt: skip
        for point in own:
            passed = point.verdict == Verdict.PASS
            axes.errorbar(
                [point.place[0]], [point.place[1]],
                xerr=_bars(point.tokens_per_s_per_user, point.tokens_per_s_per_user_ci95),
                yerr=_bars(point.tokens_per_s, point.tokens_per_s_ci95),
                fmt="o", color=color, mfc=color if passed else "white", elinewidth=0.7,
            )  # fmt: skip
            axes.annotate(
                str(point.concurrency), point.place,
                textcoords="offset points", xytext=(5, 4), fontsize="small",
            )  # fmt: skip
    front = sorted(point.place for point in usable if point.is_on_front)
    if front:
        axes.plot(*zip(*front, strict=True), color="black", linestyle="--", label="front")
    axes.set(xlabel="output tokens/s of a user", ylabel="output tokens/s of the server")
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_xlim(left=0)
    _from_zero(axes)
    axes.grid(alpha=0.3)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize="small")
    figure.savefig(directory / "pareto.png", dpi=110)


def _bars(value: float | None, interval: tuple[float, float] | None) -> list[list[float]] | None:
    """Return the distances of an interval's ends from the value, as matplotlib takes them."""
    if value is None or interval is None:
        return None
    return [[max(value - interval[0], 0.0)], [max(interval[1] - value, 0.0)]]
