"""The report for people: lines for the terminal, and plots."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from loadtest.client.plan import SUCCEEDED
from loadtest.judging.statistics import latency_values

if TYPE_CHECKING:
    from loadtest.report.build import Result

ROWS = (
    ("TTFT", "ttft_s"),
    ("TPOT", "tpot_s"),
    ("inter-chunk gap", "inter_chunk_gap_s"),
    ("end to end", "e2e_s"),
)


def lines(document: dict[str, Any]) -> list[str]:
    """The figures of a `report.json`, as a table in plain text; times in milliseconds."""
    found = []
    for scenario in document["scenarios"]:
        requests = scenario["requests"]
        found.append(
            f"{scenario['name']}: {scenario['verdict']}: {requests['succeeded']} of "
            f"{requests['offered']} requests succeeded, {requests['failed']} failed, "
            f"{requests['unfinished']} unfinished"
        )
        found.append(f"  {'ms':16}{'p50':>10}{'p90':>10}{'p99':>10}{'N':>9}")
        for label, name in ROWS:
            figure = scenario["latency"][name]
            cells = "".join(f"{_ms(figure[p]):>10}" for p in ("p50", "p90", "p99"))
            found.append(f"  {label:16}{cells}{figure['n']:>9}")
        rates = scenario["throughput"]
        found.append(
            f"  {_number(rates['succeeded_rps'])} requests/s, "
            f"{_number(rates['output_tokens_per_s'])} output tokens/s over "
            f"{rates['window_s']:.1f} s ({rates['window']})"
        )
        client = scenario["client"]
        lag = client["send_lag_s"]
        found.append(
            f"  client: send lag p50 {_ms(lag['p50'])} ms, largest "
            f"{_ms(lag['max_of_succeeded'])} ms; {client['cpu_s']:.2f} s CPU"
        )
        if scenario["calibration"] is not None:
            found += calibration_lines(scenario["calibration"])
        for name, error in scenario["errors"].items():
            example = f": {error['examples'][0]}" if error["examples"] else ""
            found.append(f"  {error['count']} x {name}{example}")
        found += [f"  ! {problem}" for problem in scenario["problems"]]
        found += [f"  note: {warning}" for warning in scenario["warnings"]]
    return found


def calibration_lines(calibration: dict[str, Any]) -> list[str]:
    """What the client itself was found to add at a load."""
    over_tls = ", over TLS" if calibration.get("tls") else ""
    return [
        f"  calibration at this load{over_tls}: TTFT bias "
        f"p50 {_ms(calibration['ttft_bias_p50_s'])} ms, "
        f"p99 {_ms(calibration['ttft_bias_p99_s'])} ms (N = {calibration['num_requests']}), "
        f"{calibration['cpu_s_per_1000_tokens']:.3f} s CPU per 1,000 tokens"
    ]


def _ms(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds * 1e3:.2f}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def plot(results: Sequence[Result], directory: Path) -> None:
    """Write `latency_cdf.png` and `ttft_over_time.png`."""
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
            # A failed request is infinitely slow: the curve then stays below 1.
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
        for time in times[~ok & ~np.isnan(times)]:
            axes.axvline(time, color="tab:red", linewidth=0.6)
        axes.set(title=result.scenario.name, xlabel="intended time, s", ylabel="TTFT, s")
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
    figure.savefig(directory / "ttft_over_time.png", dpi=110)


def plot_rates(probes: Sequence[dict[str, Any]], directory: Path) -> None:
    """Write `rates.png`: latency and throughput against the offered rate."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    ordered = sorted(probes, key=lambda probe: float(probe["rate_rps"]))
    for name, label in (("ttft_p90_s", "TTFT p90"), ("e2e_p90_s", "end to end p90")):
        shown = [(p["rate_rps"], p[name]) for p in ordered if p[name] is not None]
        if shown:
            left.plot(*zip(*shown, strict=True), marker="o", label=label)
    left.set(xlabel="offered requests/s", ylabel="s")
    tokens = [(p["rate_rps"], p["output_tokens_per_s"]) for p in ordered]
    tokens = [(rate, value) for rate, value in tokens if value is not None]
    if tokens:
        right.plot(*zip(*tokens, strict=True), marker="o", label="output tokens/s")
    right.set(xlabel="offered requests/s", ylabel="output tokens/s")
    for axes in (left, right):
        for probe in ordered:
            if probe["verdict"] != "PASS":
                axes.axvline(probe["rate_rps"], color="tab:red", linewidth=0.6)
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize="small")
    figure.savefig(directory / "rates.png", dpi=110)
