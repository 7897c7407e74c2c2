"""The findings of the data checks that a dataset was made with."""

from __future__ import annotations

from dataclasses import dataclass

from training.data.checks.report import advice_of, describe_example, describe_result
from tuneline.core.artifact import Artifact
from tuneline.core.errors import NotAnArtifactError


@dataclass(frozen=True)
class DataFinding:
    """A check with findings.

    Attributes:
        check: Its key in `data.checks`.
        action: `fix` or `warn`: a refusal makes no dataset.
        num_rows: The rows with findings.
        what: The rows and what happened to them, in words.
        example: The first row, with file, line, column and kind.
        advice: What to type to change or drop the rows; empty if the check does it.
    """

    check: str
    action: str
    num_rows: int
    what: str
    example: str
    advice: str


def data_findings(dataset: Artifact) -> list[DataFinding]:
    """Return the checks of a dataset that have findings, in their order.

    Raises:
        NotAnArtifactError: The manifest has no findings.
    """
    try:
        return [
            DataFinding(
                check=result["check"],
                action=result["action"],
                num_rows=result["num_rows"],
                what=describe_result(result),
                example=describe_example(result["examples"][0]),
                advice=advice_of(result["check"]) if result["action"] == "warn" else "",
            )
            for result in dataset.manifest.metrics["checks"]
            if result["num_rows"]
        ]
    except (KeyError, IndexError, TypeError):
        raise NotAnArtifactError(
            f"{dataset.path}: its manifest has no findings of the data checks"
        ) from None
