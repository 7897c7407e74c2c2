"""Write the files of a report."""

from __future__ import annotations

from pathlib import Path

from tuneline.core.disk import cannot_write
from tuneline.core.page.to_html import html_page
from tuneline.core.page.to_markdown import markdown_page
from tuneline.report.facts import Facts, facts_of_folder
from tuneline.report.junit import junit_text
from tuneline.report.page import report_document

HTML_FILE = "report.html"
MARKDOWN_FILE = "report.md"
JUNIT_FILE = "junit.xml"


def write_report(folder: Path, artifacts: Path | None = None) -> None:
    """Write `report.html`, `report.md` and `junit.xml` into the folder of a release.

    Args:
        folder: The folder with `release.json`.
        artifacts: The directory of the run's artifacts; the folder's parent by default.

    Raises:
        ArtifactError: The folder does not have the release, or cannot be written.
    """
    facts = facts_of_folder(folder, artifacts)
    write_files(
        facts,
        html=folder / HTML_FILE,
        markdown=folder / MARKDOWN_FILE,
        junit=folder / JUNIT_FILE,
    )


def write_files(
    facts: Facts,
    *,
    html: Path | None = None,
    markdown: Path | None = None,
    junit: Path | None = None,
) -> None:
    """Write the report in the forms that have a path.

    Raises:
        ArtifactError: A file cannot be written.
    """
    document = report_document(facts)
    if html is not None:
        _write(html, html_page(document))
    if markdown is not None:
        _write(markdown, markdown_page(document))
    if junit is not None:
        _write(junit, junit_text(facts))


def _write(path: Path, text: str) -> None:
    try:
        # Answers of models may hold half a surrogate pair, which UTF-8 cannot write.
        path.write_text(text, encoding="utf-8", errors="replace")
    except OSError as error:
        raise cannot_write(path, error) from None
