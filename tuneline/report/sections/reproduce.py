"""How to make every figure again."""

from __future__ import annotations

from tuneline.core.page.blocks import Command, Commands, Paragraph, Section
from tuneline.report.facts import Facts

STEPS = (
    ("The whole line; it runs only the stages that are stale", "up"),
    ("Training", "train"),
    ("Evaluation of base, tuned and served model", "evaluate"),
    ("Parity ladder", "prove"),
    ("Load test", "loadtest"),
    ("Gates and release", "release"),
    ("This report", "report"),
    ("Compare every byte with the manifests", "verify"),
)


def reproduce_section(facts: Facts) -> Section:
    """Return the command lines that make the figures again."""
    commands = tuple(Command(what, facts.again(command)) for what, command in STEPS)
    said = Paragraph(
        "Equal data, configuration and versions give equal digests up to the training; a training "
        "on another machine may differ in the last bits. Load figures depend on the machine."
    )
    return Section("reproduce", "How to reproduce", (said, Commands(commands)))
