from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.unit.training.data.shapes.test_shapes import READ
from training.config.data import ReadingConfig
from training.data.convert import TARGETS, convert_data, write_row
from training.data.row import Row
from training.data.rows import read_rows
from training.data.shapes import read_shape
from tuneline.core.errors import ConfigError, DataError


def _file(folder: Path, *rows: dict[str, Any]) -> str:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


KEPT = [row for columns, row in READ if not {"label", "text"} & set(row.fields)]


@pytest.mark.parametrize("row", KEPT)
def test_each_row_is_read_back_from_every_form_of_its_kind(row: Row) -> None:
    forms = [name for name, kind in TARGETS.items() if kind == row.kind]
    assert forms
    for form in forms:
        assert read_shape(json.loads(json.dumps(write_row(row, form)))) == row


def test_a_conversion_keeps_columns_and_counts_rows(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    path = _file(
        tmp_path,
        {"instruction": "a", "output": "b", "id": 1, "score": None},
        {"instruction": "a", "output": " "},
        {"instruction": "c", "output": "d", "id": "NA"},
    )
    with pytest.raises(DataError, match=r"line 2: field 'output': is empty"):
        convert_data(path, out)
    assert [file.name for file in tmp_path.iterdir()] == ["rows.jsonl"]
    counts = convert_data(path, out, bad_rows="drop")
    assert (counts.num_read, counts.dropped) == (3, {"cannot be read": 1})
    first, second = (json.loads(line) for line in out.read_text().splitlines())
    assert first == {
        "id": 1, "score": None,
        "messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}],
    }  # fmt: skip
    assert second["id"] == "NA"
    assert [row.answer for row in read_rows(out)] == ["b", "d"]


def test_a_column_that_the_form_would_read_is_an_error(tmp_path: Path) -> None:
    path = _file(tmp_path, {"instruction": "a", "output": "b", "label": "high"})
    out = tmp_path / "out.jsonl"
    with pytest.raises(DataError, match="would be read as another row") as caught:
        convert_data(path, out, to="prompt-completion")
    assert "--column category=NAME" in str(caught.value.hint)
    reading = ReadingConfig(columns={"category": "label"})
    convert_data(path, out, to="prompt-completion", reading=reading)
    assert json.loads(out.read_text())["category"] == "high"


@pytest.mark.parametrize(
    ("to", "message"),
    [
        ("preference", "line 1: has the form messages; expected preference"),
        ("csv", "--to csv: is not a form; expected one of: messages, prompt-completion, pref"),
    ],
)
def test_a_form_that_does_not_fit_is_an_error(tmp_path: Path, to: str, message: str) -> None:
    path = _file(tmp_path, {"prompt": "a", "completion": "b"})
    with pytest.raises(ConfigError) as caught:
        convert_data(path, tmp_path / "out.jsonl", to=to)
    assert message in caught.value.message
    assert [file.name for file in tmp_path.iterdir()] == ["rows.jsonl"]


def test_an_output_that_exists_is_an_error(tmp_path: Path) -> None:
    path = _file(tmp_path, {"prompt": "a", "completion": "b"})
    with pytest.raises(ConfigError, match="exists; expected a new file"):
        convert_data(path, Path(path))
