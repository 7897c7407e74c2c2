"""A load report as lines for the terminal; times in milliseconds."""

from __future__ import annotations

from loadtest.percentiles import percentile_of
from loadtest.report.part import Distribution
from loadtest.report.schema import Calibration, GpuFigures, LoadReport, ScenarioReport
from loadtest.report.session_schema import SessionFigures

ROWS = (
    ("TTFT", "ttft_s"),
    ("TPOT", "tpot_s"),
    ("inter-chunk gap", "inter_chunk_gap_s"),
    ("worst gap", "worst_gap_s"),
    ("end to end", "e2e_s"),
    ("conversation", "session_s"),
    ("waiting in it", "session_wait_s"),
)
MAX_TURNS_SHOWN = 6
OPTIONAL_ROWS = ("worst_gap_s",)
"""Shown only if an objective is set on them."""
OF_STREAMS = ("ttft_s", "tpot_s", "inter_chunk_gap_s")
"""Of a document with vectors or scores, the first token is the end."""


def report_lines(report: LoadReport) -> list[str]:
    """Return the figures of a report as a table in plain text."""
    return [line for scenario in report.scenarios for line in scenario_lines(scenario)]


def scenario_lines(scenario: ScenarioReport) -> list[str]:
    """Return the figures of one scenario as a table in plain text."""
    requests = scenario.requests
    lines = [
        f"{scenario.name}: {scenario.verdict}: {requests.succeeded} of {requests.offered} requests "
        f"succeeded, {requests.failed} failed, {requests.unfinished} unfinished",
        *_latency_table(scenario),
    ]
    if scenario.sessions is not None:
        lines += _session_lines(scenario.sessions)
    lines += _answer_lines(scenario)
    rates = scenario.throughput
    name, tokens_per_s = token_rate(scenario)
    lines.append(
        f"  {_number(rates.succeeded_rps)} requests/s, {_number(tokens_per_s)} {name} over "
        f"{rates.window_s:.1f} s ({rates.window})"
    )
    if scenario.gpu is not None:
        lines.append("  " + gpu_text(scenario.gpu))
    lines += _drift_lines(scenario)
    lag = scenario.client.send_lag_s
    lines.append(
        f"  client: send lag p50 {_ms(lag.at(50))} ms, largest {_ms(lag.max_of_succeeded)} ms; "
        f"{scenario.client.cpu_s:.2f} s CPU"
    )
    if scenario.calibration is not None:
        lines += calibration_lines(scenario.calibration)
    for name, failures in scenario.errors.items():
        example = f": {failures.examples[0]}" if failures.examples else ""
        lines.append(f"  {failures.count} x {name}{example}")
    lines += [f"  ! {problem}" for problem in scenario.problems]
    lines += [f"  note: {warning}" for warning in scenario.warnings]
    return lines


def gpu_text(gpu: GpuFigures) -> str:
    """Return the energy of the GPUs as a sentence."""
    power = ", ".join(f"{watts:.0f}" for watts in gpu.mean_power_w)
    each = "" if gpu.energy_j_per_1000_tokens is None else (
        f", {gpu.energy_j_per_1000_tokens:.1f} J per 1,000 generated tokens"
    )  # fmt: skip
    return f"GPUs take {power} W on average over {gpu.window_s:.1f} s{each}"


def _drift_lines(scenario: ScenarioReport) -> list[str]:
    """Return the drifts that an objective is set on."""
    from loadtest.report.soak_page import drift_text

    found = scenario.over_time
    drifts = [] if found is None else found.drifts
    return [f"  drift: {drift_text(drift)}" for drift in drifts if drift.ci95 is not None]


def _answer_lines(scenario: ScenarioReport) -> list[str]:
    lines = []
    endings = scenario.endings
    if endings is not None and endings.num_validated is not None:
        lines.append(f"  {endings.num_validated} answers were checked for the form that was asked")
    if (answers := scenario.answers) is not None:
        lines.append(
            f"  {answers.num_equal} of {answers.num_compared} answers to the reference's prompts "
            f"are equal by their {answers.compared}; largest difference "
            f"{_number(answers.max_logprob_difference, 4)} nats"
        )
        lines += [
            f"    request {one.request}, token {one.position}: {one.found!r}; the reference has "
            f"{one.expected!r}"
            for one in answers.first_divergences[:1]
        ]
    if (left := scenario.cancellations) is not None:
        lines.append(
            f"  {left.num_left} clients left; the server counts "
            f"{'no' if left.num_aborted is None else left.num_aborted} aborted requests, and "
            f"generated {_number(left.num_tokens_after_leaving, 0)} tokens that no client received"
        )
    return lines


def _session_lines(sessions: SessionFigures) -> list[str]:
    lines = [
        f"  {sessions.succeeded} of {sessions.offered} conversations succeeded, {sessions.failed} "
        f"failed, {sessions.unfinished} unfinished; {sessions.num_turns_sent} of "
        f"{sessions.num_turns} turns sent, {sessions.num_turns_not_reached} not reached"
    ]
    for one in sessions.turns[:MAX_TURNS_SHOWN]:
        cached = "" if one.cached_share is None else f", {one.cached_share:.0%} cached"
        tokens = "" if one.mean_prompt_tokens is None else f"{one.mean_prompt_tokens:.0f}"
        lines.append(
            f"  turn {one.turn}: TTFT p50 {_ms(one.ttft_s.at(50))} ms, {tokens or '-'} prompt "
            f"tokens{cached} (N = {one.offered})"
        )
    if len(sessions.turns) > MAX_TURNS_SHOWN:
        lines.append(f"  and {len(sessions.turns) - MAX_TURNS_SHOWN} later turns")
    return lines


def latency_rows(scenario: ScenarioReport) -> list[tuple[str, Distribution]]:
    """Return the label and the distribution of each metric that tables show."""
    return [
        (label, scenario.latency[metric])
        for label, metric in ROWS
        if metric in scenario.latency
        and (metric not in OPTIONAL_ROWS or metric in scenario.slo.latency)
        and (metric not in OF_STREAMS or has_tokens(scenario))
    ]


def has_tokens(scenario: ScenarioReport) -> bool:
    """Return whether answers are streams of tokens, not documents with vectors or scores."""
    if "ttft_s" not in scenario.latency:
        return False
    tokens = scenario.tokens
    return bool(tokens.num_events or tokens.num_output_tokens or not scenario.requests.succeeded)


def token_rate(scenario: ScenarioReport) -> tuple[str, float | None]:
    """Return the name and the value of the rate of tokens: the prompts' if answers have none."""
    rates = scenario.throughput
    if has_tokens(scenario):
        return "output tokens/s", rates.output_tokens_per_s
    return "prompt tokens/s", rates.prompt_tokens_per_s


def _latency_table(scenario: ScenarioReport) -> list[str]:
    """Return a row per metric and a column per percentile that any of them has."""
    rows = latency_rows(scenario)
    names = sorted({name for _, found in rows for name in found.percentiles}, key=percentile_of)
    lines = [f"  {'ms':16}" + "".join(f"{name:>10}" for name in names) + f"{'N':>9}"]
    for label, found in rows:
        cells = "".join(f"{_ms(found.percentiles.get(name)):>10}" for name in names)
        lines.append(f"  {label:16}{cells}{found.n:>9}")
    return lines


def calibration_lines(calibration: Calibration) -> list[str]:
    """Return what the client itself adds at a load."""
    over_tls = ", over TLS" if calibration.tls else ""
    return [
        f"  calibration at this load{over_tls}: TTFT bias p50 {_ms(calibration.ttft_bias_p50_s)} "
        f"ms, p99 {_ms(calibration.ttft_bias_p99_s)} ms (N = {calibration.num_requests}), "
        f"{calibration.cpu_s_per_1000_tokens:.3f} s CPU per 1,000 tokens"
    ]


def _ms(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds * 1e3:.2f}"


def _number(value: float | None, digits: int = 2) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
