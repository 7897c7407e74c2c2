"""The forms that a finished report is written in.

To add a form, write a module with a function from an artifact to a text, and add a row to FORMS.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING

from loadtest.report.files import report_of
from loadtest.report.otlp import otlp_text
from loadtest.report.prometheus import prometheus_text
from loadtest.report.requests_csv import csv_text
from loadtest.report.schema import REPORT_FILE
from loadtest.report.terminal import report_lines
from loadtest.report.vllm_bench import vllm_documents
from tuneline.core.artifact import Artifact
from tuneline.core.errors import ArtifactError

if TYPE_CHECKING:
    from tuneline.core.page.blocks import Document


def _table(artifact: Artifact) -> str:
    return "".join(f"{line}\n" for line in report_lines(report_of(artifact)))


def _json(artifact: Artifact) -> str:
    report_of(artifact)  # a report that cannot be read is refused in every form
    return (artifact.path / REPORT_FILE).read_text(encoding="utf-8")


def _vllm(artifact: Artifact) -> str:
    return json.dumps(vllm_documents(artifact), indent=2) + "\n"


def _html(artifact: Artifact) -> str:
    from tuneline.core.page.to_html import html_page

    return html_page(_document(artifact))


def _markdown(artifact: Artifact) -> str:
    from tuneline.core.page.to_markdown import markdown_page

    return markdown_page(_document(artifact))


def _document(artifact: Artifact) -> Document:
    if artifact.kind in STUDIES:
        from loadtest.report.study_page import study_document

        return study_document(artifact)
    from loadtest.report.page import load_document

    return load_document(artifact)


def _mlflow(artifact: Artifact) -> str:
    from loadtest.report.to_mlflow import mlflow_text

    return mlflow_text(artifact)


FORMS: dict[str, Callable[[Artifact], str]] = {
    "table": _table,
    "json": _json,
    "html": _html,
    "markdown": _markdown,
    "csv": csv_text,
    "vllm": _vllm,
    "prometheus": prometheus_text,
    "otlp": otlp_text,
    "mlflow": _mlflow,
}

STUDIES = ("load-search", "load-sweep", "load-pareto", "load-comparison")
STUDY_FORMS = ("html", "markdown", "json")


def report_text(artifact: Artifact, form: str) -> str:
    """Return a load report in one of FORMS; a study in one of STUDY_FORMS.

    Raises:
        ArtifactError: The report is damaged or of another schema version, or a study does not have
            that form.
    """
    if artifact.kind in STUDIES and form not in STUDY_FORMS:
        raise ArtifactError(
            f"{artifact.path}: is a {artifact.kind}; --format {form} is for a load report",
            hint=f"Try: --format {STUDY_FORMS[0]}",
        )
    if artifact.kind in STUDIES and form == "json":
        return (artifact.path / REPORT_FILE).read_text(encoding="utf-8")
    return FORMS[form](artifact)
