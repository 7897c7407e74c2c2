"""Documents with a version: read into their schema, refused by place, written and read back."""

import math
from pathlib import Path

import pytest
from pydantic import BaseModel, ValidationError

from tuneline.core.config import StrictModel
from tuneline.core.documents import read_versioned, write_document
from tuneline.core.errors import ArtifactError


class Note(StrictModel):
    version: int
    text: str
    value: float = 0.0


def read(path: Path) -> Note:
    return read_versioned(
        path, Note, key="version", version=2, what="a note", hint="Write the note again."
    )


def test_a_document_is_read_as_it_was_written(tmp_path: Path) -> None:
    note = Note(version=2, text="한국어 \u2028 and more")
    write_document(note, tmp_path / "note.json")
    assert read(tmp_path / "note.json") == note


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ('{"version": 2, "text": "x", "version": 2}', "the key 'version' appears twice"),
        ("[]", "version is None; expected 2"),
        ('{"version": 1, "text": "x"}', "version is 1; expected 2"),
        ('{"version": "2", "text": "x"}', "version is '2'; expected 2"),
        ('{"version": 2}', "text: Field required; expected a note of version 2"),
        ('{"version": 2, "text": "x", "more": 1}', "more: Extra inputs are not permitted"),
    ],
)
def test_another_document_is_refused(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "note.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ArtifactError) as caught:
        read(path)
    assert message in caught.value.message
    assert caught.value.message.startswith(f"{path}: ")
    assert (caught.value.hint or "").startswith("Write the note again.")
    assert caught.value.exit_code == 3


def test_a_file_that_is_not_there_or_not_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="cannot be read: No such file"):
        read(tmp_path / "note.json")
    (tmp_path / "note.json").write_bytes(b"\xff\xfe")
    with pytest.raises(ArtifactError, match="is not JSON"):
        read(tmp_path / "note.json")


def test_a_document_that_could_not_be_read_is_not_written(tmp_path: Path) -> None:
    wrong: BaseModel = Note.model_construct(version=2, text="x", value=math.nan)
    with pytest.raises(ValidationError):
        write_document(wrong, tmp_path / "note.json")
    assert not (tmp_path / "note.json").exists()
