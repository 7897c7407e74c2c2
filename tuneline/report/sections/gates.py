"""The gates: every condition of the release and its outcome in words."""

from __future__ import annotations

from collections.abc import Sequence

from tuneline.core.page.blocks import (
    Badge,
    Block,
    Code,
    Column,
    Fold,
    Paragraph,
    Section,
    Table,
    Text,
    Tone,
)
from tuneline.core.release import Gate, Outcome
from tuneline.report.facts import Facts

TONES = {
    Outcome.FAILED: Tone.BAD,
    Outcome.WAIVED: Tone.WARN,
    Outcome.PASSED: Tone.GOOD,
    Outcome.NOT_ASKED: Tone.QUIET,
}
"""In the order of the table."""


def gates_section(facts: Facts) -> Section:
    """Return the gates, those that failed first; what is missing for a run without a release."""
    if facts.release is None:
        return Section("gates", "Gates", _unreleased(facts), command=facts.again("release"))
    gates = facts.release.gates
    asked = [gate for tone in TONES for gate in gates if gate.outcome is tone]
    judged = [gate for gate in asked if gate.outcome is not Outcome.NOT_ASKED]
    rest = [gate for gate in asked if gate.outcome is Outcome.NOT_ASKED]
    blocks: list[Block] = [_table(f"{len(judged)} gates that the run asks for", judged)]
    if rest:
        blocks.append(Fold(f"{len(rest)} gates are not asked", (_table("Not asked", rest),)))
    return Section("gates", "Gates", tuple(blocks), command=facts.again("release"))


def outcome_badge(outcome: Outcome) -> Badge:
    """Return the badge of a gate's outcome."""
    return Badge(outcome.value.upper(), TONES[outcome])


def _table(caption: str, gates: Sequence[Gate]) -> Table:
    columns = (Column("outcome"), Column("gate"), Column("result"), Column("required"))
    rows = [
        (
            outcome_badge(gate.outcome),
            (f"{gate.title} ", Code(gate.name)),
            _words(gate),
            gate.required,
        )
        for gate in gates
    ]
    return Table(caption, columns, tuple(rows), is_stacked=True, head=1)


def _words(gate: Gate) -> Text:
    if gate.outcome is Outcome.WAIVED:
        return f"{gate.words} Waived: {gate.why}"
    return f"{gate.words} {gate.hint}" if gate.hint else gate.words


def _unreleased(facts: Facts) -> tuple[Block, ...]:
    why = facts.outdated or "The run has no release of the artifacts below."
    blocks: list[Block] = [Paragraph(f"No gate was judged. {why}", Tone.WARN)]
    if facts.absent:
        rows = tuple((Code(stage), reason) for stage, reason in facts.absent.items())
        columns = (Column("stage"), Column("reason"))
        blocks.append(Table("Stages without an artifact", columns, rows))
    return tuple(blocks)
