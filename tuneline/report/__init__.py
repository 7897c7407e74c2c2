"""The report of a run or of its release: a page as HTML and as Markdown, and JUnit XML.

`facts_of_run` and `facts_of_folder` collect the artifacts, and `write_report` writes the three
files into the folder of a release.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tuneline.core.lazy import lazy_face

if TYPE_CHECKING:
    from tuneline.report.facts import facts_of_folder, facts_of_run
    from tuneline.report.write import write_report

__all__ = [
    "facts_of_folder",
    "facts_of_run",
    "write_report",
]

__getattr__ = lazy_face(
    __name__,
    {
        "facts_of_folder": "tuneline.report.facts:facts_of_folder",
        "facts_of_run": "tuneline.report.facts:facts_of_run",
        "write_report": "tuneline.report.write:write_report",
    },
)
