"""The load test: the blocks that the load test's own page shows too."""

from __future__ import annotations

from tuneline.core.errors import ArtifactError
from tuneline.core.page.blocks import Listing, Paragraph, Section, Tone, verdict_badge
from tuneline.pipeline.stage import LOADTEST
from tuneline.report.facts import Facts
from tuneline.report.sections.absent import absent_section

TITLE = "Load test"


def load_section(facts: Facts) -> Section | None:
    """Return objectives, latencies, rates and their plots."""
    if LOADTEST not in facts.made:
        return absent_section("load", TITLE, facts, [LOADTEST])
    from loadtest import build_load_blocks, read_report

    artifact = facts.made[LOADTEST]
    try:
        report = read_report(artifact.path)
    except ArtifactError as error:  # of another schema version, as after an upgrade
        said = Paragraph(error.message, Tone.WARN)
        return Section("load", TITLE, (said,), facts.sources(LOADTEST), facts.again("loadtest"))
    measured = f" {report.endpoint.artifact_name or report.endpoint.model} was measured."
    first = Paragraph((verdict_badge(report.verdict), measured))
    problems = (Listing(tuple(report.problems)),) if report.problems else ()
    blocks = (first, *problems, *build_load_blocks(artifact))
    return Section("load", TITLE, blocks, facts.sources(LOADTEST), facts.again("loadtest"))
