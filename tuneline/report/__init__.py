"""The report of a run or of its release: a page as HTML and as Markdown, and JUnit XML.

`facts_of_run` and `facts_of_folder` collect the artifacts, `report_document` makes the page of
them, and `write_report` writes the three files into the folder of a release.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tuneline.core.lazy import lazy_face

if TYPE_CHECKING:
    from tuneline.report.facts import Facts as Facts
    from tuneline.report.facts import facts_of_folder as facts_of_folder
    from tuneline.report.facts import facts_of_run as facts_of_run
    from tuneline.report.junit import junit_text as junit_text
    from tuneline.report.page import report_document as report_document
    from tuneline.report.write import write_report as write_report

__all__ = [
    "Facts",
    "facts_of_folder",
    "facts_of_run",
    "junit_text",
    "report_document",
    "write_report",
]

__getattr__ = lazy_face(
    __name__,
    {
        "Facts": "tuneline.report.facts:Facts",
        "facts_of_folder": "tuneline.report.facts:facts_of_folder",
        "facts_of_run": "tuneline.report.facts:facts_of_run",
        "junit_text": "tuneline.report.junit:junit_text",
        "report_document": "tuneline.report.page:report_document",
        "write_report": "tuneline.report.write:write_report",
    },
)
