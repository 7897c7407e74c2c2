"""Reading and writing `report.json` and the records next to it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from pydantic import BaseModel, ValidationError

from loadtest.report.schema import REPORT_FILE, SCHEMA_VERSION, LoadReport
from loadtest.studies.schema import ComparisonReport
from tuneline.core.artifact import Artifact, open_artifact
from tuneline.core.errors import ArtifactError

if TYPE_CHECKING:
    from loadtest.client.records import Records

Document = TypeVar("Document", bound=BaseModel)


def write_document(document: BaseModel, path: Path) -> None:
    """Write a document, and read it back: a report that cannot be read must not leave the run."""
    text = document.model_dump_json(indent=2)
    type(document).model_validate_json(text)
    path.write_text(text + "\n", encoding="utf-8")


def read_document(path: Path, schema: type[Document]) -> Document:
    """Read a JSON document into its schema.

    Raises:
        ArtifactError: The file is unreadable, is not such a document, or has another schema
            version.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ArtifactError(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise ArtifactError(
            f"{path}: is not JSON ({error}); expected a document of the load test",
            hint="Measure again, or restore the file from a copy.",
        ) from None
    version = value.get("schema_version") if isinstance(value, dict) else None
    if version != SCHEMA_VERSION:
        raise ArtifactError(
            f"{path}: schema_version is {version!r}; expected {SCHEMA_VERSION}",
            hint="Measure again with this release, or read it with the release that wrote it.",
        )
    try:
        return schema.model_validate_json(json.dumps(value))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "the document"
        raise ArtifactError(
            f"{path}: {where}: {first['msg']}; expected a {schema.__name__} of schema version "
            f"{SCHEMA_VERSION}",
            hint="Measure again, or restore the file from a copy.",
        ) from None


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


def report_of(artifact: Artifact) -> LoadReport:
    """Read the report of an open artifact.

    Raises:
        ArtifactError: The report is damaged or of another schema version.
    """
    return read_document(artifact.path / REPORT_FILE, LoadReport)


def records_path(directory: Path, scenario: str) -> Path:
    """Return where the records of a scenario are kept."""
    return directory / f"records-{scenario}.npz"


def records_of(artifact: Artifact, report: LoadReport) -> Iterator[tuple[str, Records]]:
    """Return the name and the records of each scenario."""
    from loadtest.client.records import Records

    for scenario in report.scenarios:
        yield scenario.name, Records.load(records_path(artifact.path, scenario.name))
