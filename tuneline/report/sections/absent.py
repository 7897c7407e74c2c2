"""The words for a proof that is not there."""

from __future__ import annotations

from tuneline.core.page.blocks import Paragraph, Section, Tone
from tuneline.report.facts import Facts


def absent_section(name: str, title: str, facts: Facts, stages: list[str]) -> Section | None:
    """Return a section that says which artifacts lack; None if the run asks for none of them."""
    reasons = [f"{stage}: {facts.absent[stage]}" for stage in stages if stage in facts.absent]
    if not reasons:
        return None
    said = Paragraph(f"There is nothing to show. {'; '.join(reasons)}.", Tone.WARN)
    return Section(name, title, (said,), command=facts.up)
