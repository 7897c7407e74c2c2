"""Plots of a load test and of a study."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from loadtest.client.records import CANCELLED, SUCCEEDED
from loadtest.judging.latency import latency_values
from tuneline.core.verdict import Verdict

if TYPE_CHECKING:
    from loadtest.report.build import Result
    from loadtest.studies.schema import Probe

PLOTTED = "p90"
"""The percentile that is drawn against the rate."""


def plot_latency_cdf(results: Sequence[Result], directory: Path) -> None:
    """Write `latency_cdf.png`: the share of requests that end within a time."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    for axes, name, label in zip(
        figure.subplots(1, 2), ("ttft_s", "e2e_s"), ("TTFT", "End-to-end latency"), strict=True
    ):
        for result in results:
            measured = result.records.select(~result.records.warmup)
            values = np.sort(latency_values(measured)[name])
            if not len(values):
                continue
            # A failed request is infinitely slow, so the curve stays below 1.
            shares = np.arange(1, len(values) + 1) / len(values)
            finite = np.isfinite(values)
            text = f"{result.scenario.name} (N = {len(values)})"
            axes.step(values[finite], shares[finite], where="post", label=text)
        axes.set(xlabel=f"{label} from the intended time, s", ylabel="share of requests")
        axes.set_ylim(0, 1.02)
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend(fontsize="small")
    figure.savefig(directory / "latency_cdf.png", dpi=110)


def plot_ttft_over_time(results: Sequence[Result], directory: Path) -> None:
    """Write `ttft_over_time.png`: each request's TTFT, and a line for each failure."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 2.6 * len(results)), layout="constrained")
    rows = figure.subplots(len(results), 1, squeeze=False)[:, 0]
    for axes, result in zip(rows, results, strict=True):
        records = result.records
        times = records.intended_s
        ok = records.state == SUCCEEDED
        ttft = records.first_token_s - records.intended_s
        for rows_shown, color, label in (
            (ok & ~records.warmup, "tab:blue", "measured"),
            (ok & records.warmup, "tab:gray", "warm-up"),
        ):
            axes.scatter(times[rows_shown], ttft[rows_shown], s=9, color=color, label=label)
        failed = ~np.isin(records.state, (SUCCEEDED, CANCELLED))
        for time in times[failed & ~np.isnan(times)]:
            axes.axvline(time, color="tab:red", linewidth=0.6)
        axes.set(title=result.scenario.name, xlabel="intended time, s", ylabel="TTFT, s")
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
    figure.savefig(directory / "ttft_over_time.png", dpi=110)


def plot_rates(probes: Sequence[Probe], directory: Path) -> None:
    """Write `rates.png`: latency and throughput against the offered rate."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    ordered = sorted(probes, key=lambda probe: probe.rate_rps)
    for metric, label in (("ttft_s", "TTFT"), ("e2e_s", "end to end")):
        shown = [
            (probe.rate_rps, value)
            for probe in ordered
            if (value := probe.latency[metric].get(PLOTTED)) is not None
        ]
        if shown:
            left.plot(*zip(*shown, strict=True), marker="o", label=f"{label} {PLOTTED}")
    left.set(xlabel="offered requests/s", ylabel="s")
    tokens = [
        (probe.rate_rps, probe.output_tokens_per_s)
        for probe in ordered
        if probe.output_tokens_per_s is not None
    ]
    if tokens:
        right.plot(*zip(*tokens, strict=True), marker="o", label="output tokens/s")
    right.set(xlabel="offered requests/s", ylabel="output tokens/s")
    for axes in (left, right):
        for probe in ordered:
            if probe.verdict != Verdict.PASS:
                axes.axvline(probe.rate_rps, color="tab:red", linewidth=0.6)
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize="small")
    figure.savefig(directory / "rates.png", dpi=110)
