"""Read `report.json` and the records next to it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from loadtest.report.schema import REPORT_FILE, SCHEMA_VERSION, LoadReport
from loadtest.studies.schema import ComparisonReport, SearchReport
from tuneline.core.artifact import Artifact, open_artifact
from tuneline.core.documents import Document, read_versioned

if TYPE_CHECKING:
    from loadtest.client.records import Records


def read_document(path: Path, schema: type[Document]) -> Document:
    """Read a JSON document of the load test into its schema.

    Raises:
        ArtifactError: The file is unreadable, is not such a document, or has another schema
            version.
    """
    return read_versioned(
        path,
        schema,
        key="schema_version",
        version=SCHEMA_VERSION,
        what=f"a {schema.__name__}",
        hint="Measure again, or restore the file from a copy.",
    )


def read_report(path: Path) -> LoadReport:
    """Read the report of a load-test artifact.

    Raises:
        NotAnArtifactError: The directory is not a complete artifact.
        ArtifactError: It is of another kind, or its report is damaged or of another version.
    """
    return report_of(open_artifact(path, kind="load-report"))


def read_comparison(path: Path) -> ComparisonReport:
    """Read the report of a load comparison.

    Raises:
        NotAnArtifactError: The directory is not a complete artifact.
        ArtifactError: It is of another kind, or its report is damaged or of another version.
    """
    artifact = open_artifact(path, kind="load-comparison")
    return read_document(artifact.path / REPORT_FILE, ComparisonReport)


def read_search(path: Path) -> SearchReport:
    """Read the report of a search.

    Raises:
        NotAnArtifactError: The directory is not a complete artifact.
        ArtifactError: It is of another kind, or its report is damaged or of another version.
    """
    artifact = open_artifact(path, kind="load-search")
    return read_document(artifact.path / REPORT_FILE, SearchReport)


def report_of(artifact: Artifact) -> LoadReport:
    """Read the report of an open artifact.

    Raises:
        ArtifactError: The report is damaged or of another schema version.
    """
    return read_document(artifact.path / REPORT_FILE, LoadReport)


def sample_path(directory: Path, scenario: str) -> Path:
    """Return where a sample of a long run's records is kept, for plots."""
    return directory / f"sample-{scenario}.npz"


def load_records(directory: Path, scenario: str) -> Records:
    """Return all records of a scenario, also of a long run, which takes memory for each event."""
    from loadtest.client.records import Records, join_records, records_path
    from loadtest.client.spill import read_chunks, spill_files

    files = spill_files(directory, scenario)
    if not files:
        return Records.load(records_path(directory, scenario))
    return join_records([chunk for file in files for chunk in read_chunks(file)])


def load_requests(directory: Path, scenario: str) -> Records:
    """Return the requests of a scenario without their events, also of a long run. Their TPOT is
    that of the whole records."""
    import numpy as np

    from loadtest.client.records import Records, join_records, records_path
    from loadtest.client.spill import read_chunks, spill_files

    files = spill_files(directory, scenario)
    if not files:
        return Records.load(records_path(directory, scenario))
    parts = []
    for chunk in (chunk for file in files for chunk in read_chunks(file)):
        per_event = chunk.tokens / np.maximum(chunk.num_events, 1)
        first = np.where(np.isnan(chunk.first_tokens), per_event, chunk.first_tokens)
        parts.append(replace(chunk, first_tokens=first).without_events())
    return join_records(parts)


def records_of(artifact: Artifact, report: LoadReport) -> Iterator[tuple[str, Records]]:
    """Return the name and the records of each scenario."""
    for scenario in report.scenarios:
        yield scenario.name, load_records(artifact.path, scenario.name)
