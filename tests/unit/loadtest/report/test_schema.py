"""The schema of the load report, its page, and reports that are refused."""

import importlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from loadtest import read_report
from loadtest.report.files import read_document
from loadtest.report.schema import LoadReport, ScenarioReport
from loadtest.studies.schema import ComparisonReport, SearchReport, SweepReport
from tuneline.core.artifact import new_artifact
from tuneline.core.errors import ArtifactError

PAGE = Path(__file__).parents[4] / "docs" / "loadtest.md"


def section_of_the_page() -> str:
    _, _, rest = PAGE.read_text(encoding="utf-8").partition("## `report.json`")
    return rest.partition("\n## ")[0]


def first_cells(heading: str) -> set[str]:
    """Return the keys in the first column of the table with this heading."""
    _, found, rest = section_of_the_page().partition(f"| {heading} |")
    assert found, heading
    rows = rest.partition("\n\n")[0].splitlines()[2:]
    cells = [row.split("|")[1] for row in rows]
    return {key.removesuffix("[]") for cell in cells for key in re.findall(r"`([^`]+)`", cell)}


@pytest.mark.parametrize(
    ("heading", "model"), [("key", LoadReport), ("key of a scenario", ScenarioReport)]
)
def test_the_page_lists_every_key(heading: str, model: type[BaseModel]) -> None:
    listed = first_cells(heading)
    assert len(listed) >= 8
    assert listed == model.model_fields.keys()


def keys_of(model: type[BaseModel]) -> Iterator[str]:
    for name, field in model.model_fields.items():
        yield name
        for module, inner in re.findall(r"(loadtest\.report\.\w+)\.(\w+)", repr(field.annotation)):
            yield from keys_of(getattr(importlib.import_module(module), inner))


def test_the_page_names_no_key_that_is_not_in_a_report() -> None:
    known = set(keys_of(LoadReport)) | {"p50", "p99.9"}
    known |= {"name@digest", "Retry-After", "records-NAME.npz", "ignore_eos", "vllm:*", "slo"}
    mentioned = set(re.findall(r"`([^`]+)`", section_of_the_page()))
    mentioned = {one.removesuffix("[]") for one in mentioned}
    assert len(mentioned) > 50
    assert {one for one in mentioned if re.fullmatch(r"[a-z0-9_]+", one)} <= known | VALUES


VALUES = {"loadtest", "sha256"}


@pytest.mark.parametrize("model", [LoadReport, SearchReport, SweepReport, ComparisonReport])
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ("[]", "schema_version is None; expected 5"),
        ("{}", "schema_version is None; expected 5"),
        ('{"schema_version": 2, "verdict": "PASS"}', "schema_version is 2; expected 5"),
        ('{"schema_version": "5"}', "schema_version is '5'; expected 5"),
        ('{"schema_version": 5}', "verdict: Field required"),
        ('{"schema_version": 5, "verdict": "pas"}', "verdict: Input should be"),
    ],
)
def test_a_damaged_or_older_document_is_refused(
    model: type[BaseModel], text: str, message: str, tmp_path: Path
) -> None:
    (tmp_path / "report.json").write_text(text, encoding="utf-8")
    with pytest.raises(ArtifactError, match=re.escape(message)) as caught:
        read_document(tmp_path / "report.json", model)
    assert caught.value.exit_code == 3
    assert str(tmp_path / "report.json") in caught.value.message
    assert caught.value.hint is not None and caught.value.hint.startswith("Measure again")


def test_an_unknown_key_is_refused(tmp_path: Path) -> None:
    document: dict[str, Any] = {"schema_version": 5, "verdict": "PASS", "problem": []}
    (tmp_path / "report.json").write_text(json.dumps(document), encoding="utf-8")
    with pytest.raises(ArtifactError, match=r"problem: Extra inputs are not permitted|Field req"):
        read_document(tmp_path / "report.json", LoadReport)


def test_an_artifact_of_another_kind_is_refused(tmp_path: Path) -> None:
    with new_artifact(tmp_path / "a", "dataset", config={}) as draft:
        (draft.dir / "report.json").write_text("{}", encoding="utf-8")
    with pytest.raises(ArtifactError, match="is an artifact of kind 'dataset'"):
        read_report(tmp_path / "a")


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="cannot be read"):
        read_document(tmp_path / "report.json", LoadReport)
