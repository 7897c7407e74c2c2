"""A search, a sweep over rates or over servers, and a comparison, as a page."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from operator import attrgetter
from typing import Any

from loadtest.report.files import read_document
from loadtest.report.page import work_text
from loadtest.report.schema import REPORT_FILE
from loadtest.report.terminal import has_tokens, token_rate
from loadtest.studies.load import unit_of
from loadtest.studies.schema import (
    SIDES,
    ComparisonReport,
    Knee,
    ParetoPoint,
    ParetoReport,
    Probe,
    SearchReport,
    SweepReport,
    have_tokens,
)
from tuneline.core.artifact import Artifact
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
from tuneline.core.page.numbers import count, digits, seconds, short_seconds
from tuneline.core.page.plot import Axis, Rule, Series, line_plot


def study_document(artifact: Artifact) -> Document:
    """Return a study as a page of its own.

    Raises:
        ArtifactError: The report is damaged or of another schema version.
    """
    if artifact.kind == "load-pareto":
        pareto = read_document(artifact.path / REPORT_FILE, ParetoReport)
        return _document(
            artifact, pareto, "servers", "Tuneline sweep over servers",
            f"{_number(len(pareto.servers), 'server')}, {_number(len(pareto.points), 'point')}.",
            _front_tiles(pareto), Section("pareto", "Servers", _pareto_blocks(pareto)),
            [(one.name, one.endpoint.url) for one in pareto.servers if one.endpoint is not None],
        )  # fmt: skip
    if artifact.kind == "load-sweep":
        sweep = read_document(artifact.path / REPORT_FILE, SweepReport)
        unit = unit_of(sweep.axis, sweep.arrivals)
        return _document(
            artifact, sweep, sweep.endpoint.model, "Tuneline load sweep",
            _lead(unit, sweep.probes), _knee_tiles(sweep.knee),
            Section("sweep", "Loads",
                    (*_probe_blocks(unit, sweep.probes, sweep.knee), *_notes(sweep))),
            [("endpoint", sweep.endpoint.url)],
        )  # fmt: skip
    if artifact.kind == "load-comparison":
        comparison = read_document(artifact.path / REPORT_FILE, ComparisonReport)
        names = " and ".join(comparison.endpoints[side].model for side in SIDES)
        return _document(
            artifact, comparison, names, "Tuneline load comparison",
            "The same requests to A and to B.", (),
            Section("comparison", "B against A", _comparison_blocks(comparison)),
            [(side.upper(), comparison.endpoints[side].url) for side in SIDES],
        )  # fmt: skip
    search = read_document(artifact.path / REPORT_FILE, SearchReport)
    unit = unit_of(search.axis, search.arrivals)
    return _document(
        artifact, search, search.endpoint.model, "Tuneline load search",
        _lead(unit, search.probes), _search_tiles(search),
        Section("search", "Search", _probe_blocks(unit, search.probes, search.knee)),
        [("endpoint", search.endpoint.url)],
    )  # fmt: skip


def _document(
    artifact: Artifact,
    report: SearchReport | SweepReport | ParetoReport | ComparisonReport,
    name: str,
    about: str,
    lead: str,
    tiles: tuple[Tile, ...],
    section: Section,
    endpoints: Sequence[tuple[str, str]],
) -> Document:
    return Document(
        name=name,
        about=about,
        verdict=verdict_badge(report.verdict),
        lead=lead,
        notices=tuple(Paragraph(problem, Tone.BAD) for problem in report.problems),
        tiles=tiles,
        sections=(
            section,
            Section("set-up", "Endpoint, workload and client", (_set_up(artifact, endpoints),)),
        ),
        made=f"Measured with Tuneline, complete at {artifact.manifest.created_at}.",
    )


def _set_up(artifact: Artifact, endpoints: Sequence[tuple[str, str]]) -> Pairs:
    manifest = artifact.manifest
    workload = manifest.config.get("workload") or {}
    hardware = manifest.environment.get("hardware", {})
    pairs: list[tuple[str, str | Code]] = [(name, Code(url)) for name, url in endpoints]
    pairs += [
        ("workload", work_text(workload, manifest.config.get("max_tokens"))),
        ("objectives", ", ".join(_limits(manifest.config.get("slo") or {})) or "none"),
        ("client", f"{hardware.get('cpu', '?')}, {hardware.get('cpu_cores', '?')} cores"),
    ]
    return Pairs(tuple(pairs))


def _limits(slo: Mapping[str, Any]) -> Iterator[str]:
    """Yield each objective with its limit."""
    for name, limit in slo.items():
        if isinstance(limit, Mapping):
            yield from (f"{name}.{percentile} {seconds(one)}" for percentile, one in limit.items())
        elif limit is not None:
            yield f"{name} {seconds(limit) if name.endswith('_s') else f'{limit:g}'}"


def _lead(unit: str, probes: Sequence[Probe]) -> str:
    num_requests = sum(probe.num_requests for probe in probes)
    loads = [probe.load for probe in probes]
    span = f" from {min(loads):.4g} to {max(loads):.4g} {unit}" if loads else ""
    return f"{_number(len(probes), 'probe')}{span}, {_number(num_requests, 'request')}."


def _number(number: int, word: str) -> str:
    return f"{count(number)} {word}{'' if number == 1 else 's'}"


def _notes(sweep: SweepReport) -> tuple[Block, ...]:
    """Return the warnings of the loads, each with the loads that have it."""
    found: dict[str, list[str]] = {}
    for scenario in sweep.scenarios:
        for note in scenario.warnings:
            found.setdefault(note, []).append(scenario.name)
    if not found:
        return ()
    notes = tuple(f"{', '.join(names)}: {note}" for note, names in found.items())
    return Paragraph("Notes:"), Listing(notes)


def _search_tiles(report: SearchReport) -> tuple[Tile, ...]:
    unit = unit_of(report.axis, report.arrivals)
    found = report.max_rate_rps if report.axis == "rate" else report.max_concurrency
    failing = (
        report.lowest_failing_rate_rps
        if report.axis == "rate"
        else report.lowest_failing_concurrency
    )
    highest = Tile("highest that holds", _load(found), unit)
    if found is None:
        once = (
            report.highest_passed_rps
            if report.axis == "rate"
            else report.highest_passed_concurrency
        )
        highest = Tile("highest that passed, not confirmed", _load(once), unit)
    return (
        highest,
        Tile("lowest that fails", _load(failing), unit),
        *_knee_tiles(report.knee),
    )


def _knee_tiles(knee: Knee | None) -> tuple[Tile, ...]:
    if knee is None:
        return ()
    span = f"{knee.low} to {knee.high} streams"
    if knee.high is None:
        span = f"{knee.low} streams or more; no larger number was measured"
    return (Tile("knee", str(knee.concurrency), span),)


def _probe_blocks(
    unit: str, probes: Sequence[Probe], knee: Knee | None = None
) -> tuple[Block, ...]:
    of_tokens = have_tokens(probes)
    latencies = [("TTFT p90", "ttft_s"), ("end to end p90", "e2e_s")][0 if of_tokens else 1 :]
    throughput = "output tokens/s" if of_tokens else "succeeded/s"
    table = Table(
        "Probes, in their order",
        (
            Column(unit, True), Column("verdict"), Column("requests", True),
            *(Column(name, True) for name, _ in latencies), Column(throughput, True),
        ),
        tuple(_probe_row(probe, dict(latencies).values(), of_tokens) for probe in probes),
    )  # fmt: skip
    ordered = sorted(probes, key=attrgetter("load"))
    x = Axis(unit, limits=(0.0, None))
    rules = () if knee is None else (Rule(knee.concurrency, "knee"),)
    latency = [
        Series(name, [
            (probe.load, value)
            for probe in ordered
            if (value := probe.latency[metric].get("p90")) is not None
        ], "marked")
        for name, metric in latencies
    ]  # fmt: skip
    rates = Series(throughput, [
        (probe.load, rate)
        for probe in ordered
        if (rate := _throughput(probe, of_tokens)) is not None
    ], "marked")  # fmt: skip
    plots = []
    if any(one.points for one in latency):
        y = Axis("latency", seconds, tick=short_seconds, limits=(0.0, None))
        plots.append(line_plot(f"Latency against {unit}", latency, x, y, rules=rules))
    if rates.points:
        y = Axis(throughput, limits=(0.0, None))
        plots.append(line_plot(f"Throughput against {unit}", [rates], x, y, rules=rules))
    return (table, Plots(tuple(plots))) if plots else (table,)


def _throughput(probe: Probe, of_tokens: bool) -> float | None:
    return probe.output_tokens_per_s if of_tokens else probe.succeeded_rps


def _probe_row(probe: Probe, metrics: Iterable[str], of_tokens: bool) -> tuple[str, ...]:
    return (
        _load(probe.load if probe.concurrency is None else probe.concurrency),
        probe.verdict + (" (ended early)" if probe.stopped_early else ""),
        str(probe.num_requests),
        *(_seconds(probe.latency[metric].get("p90")) for metric in metrics),
        _or_dash(_throughput(probe, of_tokens)),
    )


def _comparison_blocks(report: ComparisonReport) -> tuple[Block, ...]:
    turns = "in turns" if report.interleaved else "one after the other"
    all_runs = [run for one in report.scenarios for side in SIDES for run in one.runs[side]]
    of_tokens = any(map(has_tokens, all_runs))
    sides = Table(
        f"Endpoints, measured {turns}",
        (Column("side"), Column("scenario"), Column("succeeded", True), Column("requests", True),
         Column("output tokens/s" if of_tokens else "prompt tokens/s", True), Column("verdict")),
        tuple(
            (
                side.upper(),
                f"{scenario.name}, round {number}",
                str(run.requests.succeeded),
                str(run.requests.offered),
                _or_dash(token_rate(run)[1]),
                run.verdict,
            )
            for scenario in report.scenarios
            for side in SIDES
            for number, run in enumerate(scenario.runs[side], start=1)
        ),
    )  # fmt: skip
    differences = Table(
        f"Differences of the same requests; B may be slower by {report.margin:.1%} of A",
        (Column("scenario"), Column("metric"), Column("A", True), Column("B", True),
         Column("B - A", True), Column("95 %", True), Column("pairs", True), Column("verdict")),
        tuple(
            (
                scenario.name,
                one.metric,
                seconds(one.mean_a),
                seconds(one.mean_b),
                _signed_ms(one.difference),
                f"{_signed_ms(one.ci95_low)} to {_signed_ms(one.ci95_high)}",
                str(one.num_pairs),
                one.verdict,
            )
            for scenario in report.scenarios
            for one in scenario.differences
        ),
    )  # fmt: skip
    return differences, sides


def _signed_ms(value_s: float) -> str:
    return f"{value_s * 1e3:+.2f} ms"


def _front_tiles(report: ParetoReport) -> tuple[Tile, ...]:
    front = [point for point in report.points if point.is_on_front]
    if not front:
        return ()
    most = max(front, key=lambda point: point.tokens_per_s or 0.0)
    fastest = max(front, key=lambda point: point.tokens_per_s_per_user or 0.0)
    return (
        Tile("most tokens/s", _or_dash(most.tokens_per_s), _place(most)),
        Tile("fastest user", _or_dash(fastest.tokens_per_s_per_user), _place(fastest)),
    )


def _place(point: ParetoPoint) -> str:
    return f"{point.server}, {point.concurrency} streams"


def _pareto_blocks(report: ParetoReport) -> tuple[Block, ...]:
    settings = Table(
        "Servers",
        (Column("server"), Column("settings"), Column("problem")),
        tuple(
            (
                server.name,
                ", ".join(f"{key}={value}" for key, value in server.settings.items())
                or "the run's",
                server.problem or "",
            )
            for server in report.servers
        ),
    )
    points = Table(
        "Points; the front has a star",
        (Column("server"), Column("streams", True), Column("tokens/s per user", True),
         Column("95 %", True), Column("tokens/s of the server", True), Column("95 %", True),
         Column("TTFT p90", True), Column("verdict"), Column("front")),
        tuple(
            (
                point.server,
                str(point.concurrency),
                _or_dash(point.tokens_per_s_per_user),
                _interval(point.tokens_per_s_per_user_ci95),
                _or_dash(point.tokens_per_s),
                _interval(point.tokens_per_s_ci95),
                _seconds(point.ttft_p90_s),
                point.verdict,
                "*" if point.is_on_front else "",
            )
            for point in report.points
        ),
    )  # fmt: skip
    usable = [point for point in report.points if point.is_usable]
    if not usable:
        return (settings, points)
    series = [
        Series(server.name, sorted(point.place for point in own), "marked")
        for server in report.servers
        if (own := [point for point in usable if point.server == server.name])
    ]
    front = sorted(point.place for point in usable if point.is_on_front)
    plot = line_plot(
        "Tokens/s of the server against tokens/s per user",
        [*series, Series("front", front)],
        Axis("output tokens/s of a user", limits=(0.0, None)),
        Axis("output tokens/s of the server", limits=(0.0, None)),
    )
    return (settings, Plots((plot,)), points)


def _interval(interval: tuple[float, float] | None) -> str:
    return "–" if interval is None else f"{digits(interval[0])} to {digits(interval[1])}"


def _load(value: float | None) -> str:
    """Return a rate, or a whole number of streams."""
    return count(value) if isinstance(value, int) else _or_dash(value)


def _or_dash(value: float | None) -> str:
    return "–" if value is None else digits(value)


def _seconds(value: float | None) -> str:
    return "–" if value is None else seconds(value)
