"""A load report as blocks of a page: objectives, latencies, rates, plots of the records."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from loadtest.client.records import CANCELLED, SUCCEEDED, Records, records_path
from loadtest.judging.latency import latency_values
from loadtest.percentiles import name_of, percentile_of
from loadtest.report.files import report_of, sample_path
from loadtest.report.schema import LoadReport, ScenarioReport
from loadtest.report.soak_page import soak_plots
from loadtest.report.terminal import gpu_text, latency_rows
from tuneline.core.artifact import Artifact
from tuneline.core.digests import short_digest
from tuneline.core.page.blocks import (
    Block,
    Code,
    Column,
    Document,
    Listing,
    Pairs,
    Paragraph,
    Plot,
    Plots,
    Section,
    Table,
    Tile,
    Tone,
    verdict_badge,
)
from tuneline.core.page.numbers import count, digits, seconds, share, short_seconds, whole_share
from tuneline.core.page.plot import Axis, Mark, Row, Rule, Series, line_plot, row_plot
from tuneline.core.verdict import Verdict

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


def load_document(artifact: Artifact) -> Document:
    """Return a load report as a page of its own.

    Raises:
        ArtifactError: The report is damaged or of another schema version.
    """
    report = report_of(artifact)
    said = [Paragraph(problem, Tone.BAD) for problem in report.problems]
    own = ((artifact.path.name, artifact.short_digest),)
    again = f"tuneline loadtest report {artifact.path.name} --format html"
    sections = [Section("load", "Load test", build_load_blocks(artifact), own, again)]
    sections.append(Section("measured", "Endpoint, workload and client", _set_up(report)))
    return Document(
        name=report.endpoint.model,
        about="Tuneline load test",
        verdict=verdict_badge(report.verdict),
        lead=_lead(report),
        notices=tuple(said),
        tiles=build_load_tiles(report),
        sections=tuple(sections),
        made=f"Measured with Tuneline, complete at {artifact.manifest.created_at}.",
    )


def build_load_blocks(artifact: Artifact) -> tuple[Block, ...]:
    """Return the blocks that show a load report.

    Raises:
        ArtifactError: The report is damaged or of another schema version.
    """
    report = report_of(artifact)
    # A copy of a report may come without its records; the tables need only the report.
    measured = [
        (scenario, Records.load(path))
        for scenario in report.scenarios
        if (path := _shown_records(artifact.path, scenario)).is_file()
    ]
    blocks: list[Block] = [_objectives(report), *map(_latencies, report.scenarios), _rates(report)]
    for scenario in report.scenarios:
        blocks += _conversations(scenario) + _checked(scenario)
    if any(one.withheld for scenario in report.scenarios for one in scenario.latency.values()):
        blocks.append(Paragraph("A dash: too few requests for that percentile."))
    plots = [
        *_against_limits(report), *_curves(measured), *_over_time(measured), *soak_plots(report),
    ]  # fmt: skip
    if plots:
        blocks.append(Plots(tuple(plots)))
    notes = [f"{one.name}: {note}" for one in report.scenarios for note in one.warnings]
    reasons = [
        f"{scenario.name}, {one.name}: {one.verdict}: {one.reason}"
        for scenario in report.scenarios
        for one in scenario.objectives
        if one.verdict is not Verdict.PASS
    ]
    failures = [
        f"{scenario.name}: {found.count} × {name}: {found.examples[0] if found.examples else ''}"
        for scenario in report.scenarios
        for name, found in scenario.errors.items()
    ]
    if reasons:
        blocks.insert(1, Listing(tuple(reasons)))
    if failures:
        blocks += [Paragraph("Failed requests:"), Listing(tuple(failures))]
    if notes:
        blocks += [Paragraph("Notes:"), Listing(tuple(notes))]
    return tuple(blocks)


def _shown_records(directory: Path, scenario: ScenarioReport) -> Path:
    """Return the file of the records that plots show: of a long run a sample."""
    return (sample_path if scenario.spilled else records_path)(directory, scenario.name)


def build_load_tiles(report: LoadReport) -> tuple[Tile, ...]:
    """Return the figures of the first scenario that a reader looks for."""
    first = report.scenarios[0]
    rates, requests = first.throughput, first.requests
    return (
        Tile("TTFT p90", seconds(first.latency["ttft_s"].at(90)), first.name),
        Tile("TPOT p90", seconds(first.latency["tpot_s"].at(90)), first.name),
        Tile("output tokens/s", digits(rates.output_tokens_per_s), first.name),
        Tile("requests", f"{requests.succeeded} of {requests.offered}", "succeeded"),
    )


def _lead(report: LoadReport) -> str:
    names = ", ".join(scenario.name for scenario in report.scenarios)
    num_requests = sum(scenario.requests.offered for scenario in report.scenarios)
    return f"{count(num_requests)} measured requests in {len(report.scenarios)} scenarios: {names}."


def _objectives(report: LoadReport) -> Table:
    columns = (
        Column("objective"), Column("scenario"), Column("verdict"), Column("measured", True),
        Column("limit", True), Column("N", True),
    )  # fmt: skip
    rows = [
        (
            Code(one.name),
            scenario.name,
            verdict_badge(one.verdict),
            _with_unit(one.measured, one.unit),
            _with_unit(one.limit, one.unit),
            count(one.n),
        )
        for scenario in report.scenarios
        for one in scenario.objectives
    ]
    return Table("Service level objectives", columns, tuple(rows))


def _latencies(scenario: ScenarioReport) -> Table:
    found = latency_rows(scenario)
    names = sorted({name for _, one in found for name in one.percentiles}, key=percentile_of)
    rows = [
        (label, *(seconds(one.percentiles.get(name)) for name in names), count(one.n))
        for label, one in found
    ]
    columns = (Column("metric"), *(Column(name, True) for name in names), Column("N", True))
    return Table(f"Latencies of {scenario.name}, from the intended time", columns, tuple(rows))


def _conversations(scenario: ScenarioReport) -> list[Block]:
    """Return the figures of conversations and of their turns; empty without sessions."""
    found = scenario.sessions
    if found is None:
        return []
    columns = (
        Column("turn"), Column("succeeded", True), Column("prompt tokens", True),
        Column("cached", True), Column("TTFT p50", True), Column("TTFT p90", True),
        Column("end to end p50", True),
    )  # fmt: skip
    rows = [
        (
            str(one.turn),
            f"{one.succeeded} of {one.offered}",
            digits(one.mean_prompt_tokens),
            share(one.cached_share),
            seconds(one.ttft_s.at(50)),
            seconds(one.ttft_s.at(90)),
            seconds(one.e2e_s.at(50)),
        )
        for one in found.turns
    ]
    text = (
        f"{found.succeeded} of {found.offered} conversations succeeded, {found.failed} failed, "
        f"{found.unfinished} are unfinished; {found.num_turns_sent} of {found.num_turns} turns "
        f"were sent. {share(found.prefix_reuse)} of the prompt tokens repeat an earlier turn."
    )
    return [Paragraph(text), Table(f"Turns of {scenario.name}", columns, tuple(rows))]


def _checked(scenario: ScenarioReport) -> list[Block]:
    """Return the answers that differ from the reference, the clients that left and the energy."""
    blocks: list[Block] = []
    if (answers := scenario.answers) is not None:
        text = (
            f"{scenario.name}: {answers.num_equal} of {answers.num_compared} answers to the "
            f"reference's prompts are equal by their {answers.compared}."
        )
        blocks.append(Paragraph(text, Tone.BAD if answers.problems else Tone.QUIET))
        wrong = [
            f"request {one.request}, token {one.position}: {one.found!r}; the reference has "
            f"{one.expected!r}"
            for one in answers.first_divergences
        ]
        blocks += [Listing(tuple(wrong))] if wrong else []
    if (left := scenario.cancellations) is not None:
        aborted = "no" if left.num_aborted is None else count(left.num_aborted)
        text = (
            f"{scenario.name}: {left.num_left} clients left; the server counts {aborted} aborted."
        )
        blocks.append(Paragraph(text))
    if scenario.gpu is not None:
        blocks.append(Paragraph(f"{scenario.name}: {gpu_text(scenario.gpu)}."))
    return blocks


def _rates(report: LoadReport) -> Table:
    columns = (
        Column("scenario"), Column("succeeded", True), Column("errors", True),
        Column("requests/s", True), Column("output tokens/s", True), Column("window", True),
    )  # fmt: skip
    rows = [
        (
            one.name,
            f"{one.requests.succeeded} of {one.requests.offered}",
            share(one.requests.error_rate),
            digits(one.throughput.succeeded_rps),
            digits(one.throughput.output_tokens_per_s),
            seconds(one.throughput.window_s),
        )
        for one in report.scenarios
    ]
    return Table("Rates", columns, tuple(rows))


def _against_limits(report: LoadReport) -> list[Plot]:
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


def _curves(measured: Measured) -> list[Plot]:
    """Return the share of requests that end within a time, for TTFT and for the whole answer."""
    plots = []
    for name, title in (("ttft_s", "Time to first token"), ("e2e_s", "End-to-end latency")):
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


def _over_time(measured: Measured) -> list[Plot]:
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
        y = Axis("time to first token", show=seconds, tick=short_seconds, limits=(0.0, None))
        spoken = " ".join(_described(cloud) for cloud in clouds if cloud.points)
        spoken += f" {num_failed} requests failed; {which} a vertical line."
        plots.append(line_plot("TTFT of each request", clouds, x, y, says=spoken, rules=rules))
    if any(rate.points for rate in rates):
        y = Axis("output tokens/s", limits=(0.0, None))
        plots.append(line_plot("Throughput over the run", rates, x, y, says=" ".join(says)))
    return plots


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


def _set_up(report: LoadReport) -> tuple[Block, ...]:
    endpoint, workload = report.endpoint, report.workload
    hardware = report.environment.get("hardware", {})
    inputs = ", ".join(f"{one.role} {short_digest(one.digest)}" for one in report.inputs)
    pairs: tuple[tuple[str, str | Code], ...] = (
        ("endpoint", Code(endpoint.url)),
        ("served as", ", ".join(endpoint.served_names)),
        ("artifact", endpoint.artifact_name or "the server has no name with a digest"),
        ("inputs", inputs or "none"),
        ("workload", f"{workload.source}, at most {workload.max_tokens} tokens per answer"),
        *_images(report),
        ("client", f"{hardware.get('cpu', '?')}, {hardware.get('cpu_cores', '?')} cores"),
    )
    return (Pairs(pairs),)


def _images(report: LoadReport) -> list[tuple[str, str]]:
    found = [one.images for one in report.scenarios if one.images is not None]
    num_sent = sum(one.num_sent for one in found)
    if not num_sent:
        return []
    kib = sum(one.mean_url_bytes * one.num_sent for one in found) / num_sent / 1024
    size = report.workload.images
    num_requests = sum(one.requests.offered for one in report.scenarios)
    what = "images sent"
    # With more or fewer images, some come from a file, or some requests have none.
    if size is not None and num_sent == num_requests * size.count:
        what = f"sent of {size.width} x {size.height} pixels"
    return [("images", f"{num_sent} {what}, {kib:.1f} KiB each as a URL")]


def _with_unit(value: float | None, unit: str) -> str:
    if unit == "s":
        return seconds(value)
    if unit == "1":
        return share(value)
    return f"{digits(value)} {unit}".strip()
