"""The forgetting suite: the skills of the base that the tuned model kept or lost."""

from __future__ import annotations

from tuneline.core.page.blocks import (
    Block,
    Column,
    Listing,
    Paragraph,
    Plots,
    Section,
    Table,
    verdict_badge,
)
from tuneline.core.page.numbers import points, share
from tuneline.core.page.plot import Axis, Mark, Row, row_plot
from tuneline.pipeline.stage import FORGETTING
from tuneline.report.facts import Facts
from tuneline.report.sections.absent import absent_section

REPORT_FILE = "forgetting.json"
TITLE = "Forgetting suite"


def forgetting_section(facts: Facts) -> Section | None:
    """Return the skills of base and tuned model; None if the run does not ask the suite."""
    if FORGETTING not in facts.made:
        return absent_section(FORGETTING, TITLE, facts, [FORGETTING])
    metrics = facts.read(FORGETTING, REPORT_FILE)
    low, high = metrics["interval"]
    total = (
        f" {points(metrics['difference'])} points on {metrics['num_items']} items of skills that "
        f"the base has (95 %: {points(low)} to {points(high)})."
    )
    columns = (
        Column("skill"), Column("verdict"), Column("items", True), Column("base", True),
        Column("tuned", True), Column("difference", True), Column("95 % interval", True),
    )  # fmt: skip
    rows, drawn = [], []
    for name, skill in metrics["skills"].items():
        low, high = skill["interval"]
        interval = f"{points(low)} to {points(high)}"
        rows.append(
            (
                name, verdict_badge(skill["verdict"]), str(skill["num_items"]),
                share(skill["base"]), share(skill["tuned"]), points(skill["difference"]), interval,
            )
        )  # fmt: skip
        says = f"{points(skill['difference'])} ({interval})"
        mark = Mark(100 * skill["difference"])
        drawn.append(Row(name, says, [mark], (100 * low, 100 * high)))
    blocks: list[Block] = [
        Paragraph((verdict_badge(metrics["verdict"]), total)),
        Table("Skills, tuned against base", columns, tuple(rows)),
    ]
    if metrics["problems"]:
        blocks.insert(1, Listing(tuple(metrics["problems"])))
    axis = Axis("percentage points, left of the line is lost")
    blocks.append(Plots((row_plot("Tuned minus base by skill", drawn, axis, zero=True),)))
    return Section(FORGETTING, TITLE, tuple(blocks), facts.sources(FORGETTING), facts.up)
