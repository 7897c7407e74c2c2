"""The sections in the order of the page. A new section is one file here and one row."""

from __future__ import annotations

from collections.abc import Callable

from tuneline.core.page.blocks import Section
from tuneline.report.facts import Facts
from tuneline.report.sections.evaluation import evaluation_section
from tuneline.report.sections.forgetting import forgetting_section
from tuneline.report.sections.gates import gates_section
from tuneline.report.sections.ladder import ladder_section
from tuneline.report.sections.load import load_section
from tuneline.report.sections.provenance import provenance_section
from tuneline.report.sections.reproduce import reproduce_section
from tuneline.report.sections.training import training_section

SECTIONS: tuple[Callable[[Facts], Section | None], ...] = (
    gates_section,
    training_section,
    evaluation_section,
    forgetting_section,
    ladder_section,
    load_section,
    provenance_section,
    reproduce_section,
)
"""A section is None if the run does not ask for what it shows."""
