"""The forms that a finished report is written in."""

from __future__ import annotations

import json
from collections.abc import Callable

from loadtest.report.files import report_of
from loadtest.report.prometheus import prometheus_text
from loadtest.report.requests_csv import csv_text
from loadtest.report.schema import REPORT_FILE
from loadtest.report.terminal import report_lines
from loadtest.report.vllm_bench import vllm_documents
from tuneline.core.artifact import Artifact


def _table(artifact: Artifact) -> str:
    return "".join(f"{line}\n" for line in report_lines(report_of(artifact)))


def _json(artifact: Artifact) -> str:
    report_of(artifact)  # a report that cannot be read is refused in every form
    return (artifact.path / REPORT_FILE).read_text(encoding="utf-8")


def _vllm(artifact: Artifact) -> str:
    return json.dumps(vllm_documents(artifact), indent=2) + "\n"


def _html(artifact: Artifact) -> str:
    from loadtest.report.page import load_document
    from tuneline.core.page.to_html import html_page

    return html_page(load_document(artifact))


def _markdown(artifact: Artifact) -> str:
    from loadtest.report.page import load_document
    from tuneline.core.page.to_markdown import markdown_page

    return markdown_page(load_document(artifact))


FORMS: dict[str, Callable[[Artifact], str]] = {
    "table": _table,
    "json": _json,
    "html": _html,
    "markdown": _markdown,
    "csv": csv_text,
    "vllm": _vllm,
    "prometheus": prometheus_text,
}


def report_text(artifact: Artifact, form: str) -> str:
    """Return a load report in one of FORMS.

    Raises:
        ArtifactError: The report is damaged or of another schema version.
    """
    return FORMS[form](artifact)
