"""A load report as blocks of a page: objectives, latencies, rates, plots of the records."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from loadtest.client.records import Records, records_path
from loadtest.percentiles import percentile_of
from loadtest.report.files import report_of, sample_path
from loadtest.report.page_plots import (
    NAMES,
    curve_plots,
    plots_against_limits,
    plots_over_time,
)
from loadtest.report.schema import LoadReport, Objective, ScenarioReport
from loadtest.report.soak_page import soak_plots
from loadtest.report.terminal import gpu_text, has_tokens, latency_rows, token_rate
from loadtest.workload_config import POOLED
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
    Plots,
    Section,
    Table,
    Tile,
    Tone,
    verdict_badge,
)
from tuneline.core.page.numbers import (
    ABSENT,
    count,
    digits,
    seconds,
    share,
)
from tuneline.core.verdict import Verdict


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
    if any(
        one.without_interval for scenario in report.scenarios for one in scenario.latency.values()
    ):
        blocks.append(
            Paragraph(
                "A latency without an interval: neighbours depend on each other, and more "
                "requests are needed."
            )
        )
    plots = [
        *plots_against_limits(report),
        *curve_plots(measured),
        *plots_over_time(measured),
        *soak_plots(report),
    ]
    if plots:
        blocks.append(Plots(tuple(plots)))
    notes = [f"{one.name}: {note}" for one in report.scenarios for note in one.warnings]
    reasons = [
        f"{scenario.name}, {one.name}: {one.verdict}: {one.reason}"
        for scenario in report.scenarios
        for one in scenario.objectives
        # The page shows the problems above.
        if one.verdict is not Verdict.PASS and f"{one.name}: {one.reason}" not in scenario.problems
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
    requests = first.requests
    name, tokens_per_s = token_rate(first)
    shown = ("ttft_s", "tpot_s") if has_tokens(first) else ("e2e_s",)
    return (
        *(_latency_tile(first, metric) for metric in shown),
        Tile(name, digits(tokens_per_s), first.name),
        Tile("requests", f"{count(requests.succeeded)} of {count(requests.offered)}", "succeeded"),
    )


def _latency_tile(scenario: ScenarioReport, metric: str) -> Tile:
    """Return the 90th percentile, or the median if the requests are too few for that."""
    found = scenario.latency[metric]
    q = 50 if found.at(90) is None and found.at(50) is not None else 90
    return Tile(f"{NAMES[metric]} p{q}", seconds(found.at(q)), _limit(scenario, metric, q))


def _limit(scenario: ScenarioReport, metric: str, q: int) -> str:
    limit = scenario.slo.latency.get(metric, {}).get(q)
    return scenario.name if limit is None else f"limit {seconds(limit)}, {scenario.name}"


def _lead(report: LoadReport) -> str:
    names = ", ".join(scenario.name for scenario in report.scenarios)
    num_requests = sum(scenario.requests.offered for scenario in report.scenarios)
    plural = "" if len(report.scenarios) == 1 else "s"
    return (
        f"{count(num_requests)} measured requests in {len(report.scenarios)} scenario{plural}: "
        f"{names}."
    )


def _objectives(report: LoadReport) -> Table:
    columns = (
        Column("objective"), Column("scenario"), Column("verdict"), Column("measured", True),
        Column("95 % interval", True), Column("limit", True), Column("N", True),
    )  # fmt: skip
    rows = [
        (
            Code(one.name),
            scenario.name,
            verdict_badge(one.verdict),
            _with_unit(one.measured, one.unit),
            _interval(scenario, one),
            _with_unit(one.limit, one.unit),
            count(one.n),
        )
        for scenario in report.scenarios
        for one in scenario.objectives
    ]
    return Table("Service level objectives", columns, tuple(rows))


def _interval(scenario: ScenarioReport, objective: Objective) -> str:
    """Return the interval of a latency or of the error rate at 95 %; a dash for other figures."""
    if objective.name == "max_error_rate":
        return " to ".join(share(bound) for bound in scenario.requests.error_rate_ci95)
    metric, _, percentile = objective.name.partition(".")
    found = scenario.latency.get(metric)
    bounds = None if found is None else found.ci95.get(percentile)
    if bounds is None:
        return ABSENT
    return " to ".join("∞" if bound is None else seconds(bound) for bound in bounds)


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
        Column("offered/s", True), Column("succeeded/s", True),
        Column(token_rate(report.scenarios[0])[0], True), Column("window", True),
    )  # fmt: skip
    rows = [
        (
            one.name,
            f"{count(one.requests.succeeded)} of {count(one.requests.offered)}",
            share(one.requests.error_rate),
            digits(one.throughput.offered_rps),
            digits(one.throughput.succeeded_rps),
            digits(token_rate(one)[1]),
            seconds(one.throughput.window_s),
        )
        for one in report.scenarios
    ]
    return Table("Rates", columns, tuple(rows))


def _set_up(report: LoadReport) -> tuple[Block, ...]:
    endpoint, workload = report.endpoint, report.workload
    hardware = report.environment.get("hardware", {})
    inputs = ", ".join(f"{one.role} {short_digest(one.digest)}" for one in report.inputs)
    pairs: tuple[tuple[str, str | Code], ...] = (
        ("endpoint", Code(endpoint.url)),
        ("served as", ", ".join(endpoint.served_names)),
        ("artifact", endpoint.artifact_name or "the server has no name with a digest"),
        ("inputs", inputs or "none"),
        ("workload", work_text(workload.model_dump(), workload.max_tokens)),
        *_images(report),
        *((f"load of {one.name}", _load(one)) for one in report.scenarios),
        ("client", f"{hardware.get('cpu', '?')}, {hardware.get('cpu_cores', '?')} cores"),
        *((f"client in {one.name}", _client(one)) for one in report.scenarios),
    )
    return (Pairs(pairs),)


def work_text(workload: Mapping[str, Any], max_tokens: int | None) -> str:
    """Return what the requests ask, from the section `workload`."""
    said = [str(workload.get("source", "unknown"))]
    if workload.get("sessions"):
        said.append("conversations")
    route = workload.get("route", "chat")
    if route != "chat":
        said.append(f"to the route {route}")
    if max_tokens is not None and route not in POOLED:
        said.append(f"at most {max_tokens} tokens per answer")
    return ", ".join(said)


def _load(scenario: ScenarioReport) -> str:
    """Return when the requests of a scenario were sent."""
    config = scenario.config
    unit = "requests" if scenario.sessions is None else "conversations"
    if config.concurrency is not None:
        said = [f"closed loop, {count(config.concurrency)} {unit} at once"]
    else:
        said = [f"open loop, {config.arrival or 'poisson'} arrivals"]
        if config.rate_rps is not None:
            end = "" if config.rate_end_rps is None else f" to {config.rate_end_rps:g}"
            said.append(f"{config.rate_rps:g}{end} {unit}/s")
    if config.num_requests is not None:
        said.append(f"{count(config.num_requests)} {unit}")
    if config.duration_s is not None:
        said.append(f"for {seconds(config.duration_s)}")
    return ", ".join([*said, f"after {count(scenario.requests.warmup)} requests of warm-up"])


def _client(scenario: ScenarioReport) -> str:
    """Return what the client itself adds."""
    lag, found = scenario.client.send_lag_s, scenario.calibration
    said = f"send lag p99 {seconds(lag.at(99))}, largest {seconds(lag.max_of_succeeded)}"
    if found is None:
        return f"{said}; not calibrated"
    bias, worst = seconds(found.ttft_bias_p50_s), seconds(found.ttft_bias_p99_s)
    return f"{said}; calibration: TTFT bias p50 {bias}, p99 {worst}"


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
