"""How to make every figure again."""

from __future__ import annotations

from tuneline.core.page.blocks import Command, Commands, Paragraph, Section
from tuneline.pipeline.stage import ADAPTER, LOADTEST, PARITY_MERGED
from tuneline.report.facts import Facts

STEPS = (
    ("The whole line; it runs only the stages that are stale", "up", ""),
    ("Training", "train", ADAPTER),
    ("Evaluation of base, tuned and served model", "evaluate", ADAPTER),
    ("Parity ladder", "prove", PARITY_MERGED),
    ("Load test", "loadtest", LOADTEST),
    ("Gates and release", "release", ""),
    ("This report", "report", ""),
    ("Compare every byte with the manifests", "verify", ""),
)
"""The title, the command, and the stage without which a line lacks the command."""
ANYWHERE = Command(
    "Check this release, a copy of its model and its signature, on any machine",
    "tuneline verify RELEASE_DIR --model MODEL_DIR --key PUB.pem",
)


def reproduce_section(facts: Facts) -> Section:
    """Return the command lines that make the figures again."""
    stages = {"", *facts.made, *facts.absent}
    commands = [Command(what, facts.again(one)) for what, one, stage in STEPS if stage in stages]
    if facts.release is not None:
        commands.append(ANYWHERE)
    said = Paragraph(
        "Equal data, configuration and versions give equal digests up to the training; a training "
        "on another machine may differ in the last bits. Load figures depend on the machine."
    )
    return Section("reproduce", "How to reproduce", (said, Commands(tuple(commands))))
