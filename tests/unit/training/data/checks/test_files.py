"""The checks of files: their document, their lines, their picture and their refusals."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.commands import tuneline_here
from tests.unit.training.data.checks.made import clean_rows, row
from training.data.checks.files import check_files
from training.data.row import Row
from tuneline.core.errors import ConfigError

BAD = [
    row("Write to kim.minsu@naver.com at once", "It is done.", 41),
    row("Who are you?", "As an AI language model, I cannot say.", 42),
]


def written(path: Path, rows: list[Row]) -> str:
    lines = [json.dumps({"prompt": r.prompt[0]["content"], "completion": r.answer}) for r in rows]
    path.write_text("\n".join(lines) + "\n")
    return str(path)


def test_rows_read_are_rows_kept_and_dropped(tmp_path: Path) -> None:
    rows = clean_rows(40)
    train = written(tmp_path / "a.jsonl", [*rows[:30], rows[0], rows[35], *BAD])
    report = check_files([train], heldout=written(tmp_path / "b.jsonl", rows[30:])).document
    sides = report["rows"]
    assert sides["train"]["dropped"] == {"exact duplicate": 1, "prompt is held out": 1}
    assert [side["num_read"] for side in sides.values()] == [34, 10]
    for side in sides.values():
        assert side["num_read"] == side["num_kept"] + sum(side["dropped"].values())


def test_lines_name_file_line_and_column(tmp_path: Path) -> None:
    path = written(tmp_path / "a.jsonl", [*clean_rows(40), *BAD])
    lines = check_files([path]).lines
    assert f"  {path}: line 42: completion[0].content: refusal: As an AI language model" in lines
    assert f"  {path}: line 41: prompt[0].content: email: k**.*****@*****.**m" in lines
    assert "kim.minsu" not in "\n".join(lines)


def test_places_in_a_json_array_are_rows(tmp_path: Path) -> None:
    lines = Path(written(tmp_path / "a.jsonl", clean_rows(20) * 2)).read_text().splitlines()
    path = tmp_path / "a.json"
    path.write_text(json.dumps([json.loads(line) for line in lines], indent=1))
    report = check_files([str(path)])
    (duplicates,) = [c for c in report.document["checks"] if c["check"] == "duplicates"]
    assert duplicates["examples"][0]["other"] == f"{path}: row 1"
    assert any(line.startswith(f"  {path}: row 21: ") for line in report.lines)


def test_several_files_are_checked_together(tmp_path: Path) -> None:
    rows = clean_rows(20)
    paths = [written(tmp_path / name, rows) for name in ("a.jsonl", "b.jsonl")]
    (duplicates,) = [c for c in check_files(paths).document["checks"] if c["check"] == "duplicates"]
    assert duplicates["num_rows"] == 20
    assert duplicates["examples"][0]["file"] == paths[1]
    assert duplicates["examples"][0]["other"] == f"{paths[0]}: line 1"


@pytest.mark.parametrize(("name", "begins"), [("p.png", b"\x89PNG"), ("p.svg", b"<?xml")])
def test_a_picture_depends_on_the_rows_only(tmp_path: Path, name: str, begins: bytes) -> None:
    path = written(tmp_path / "a.jsonl", [*clean_rows(40), *BAD])
    pictures = []
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        check_files([path], picture=tmp_path / folder / name)
        pictures.append((tmp_path / folder / name).read_bytes())
    assert pictures[0].startswith(begins)
    assert pictures[0] == pictures[1]


def test_a_picture_of_another_type_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"expected a name that ends in \.png or \.svg"):
        check_files([str(tmp_path / "a.jsonl")], picture=tmp_path / "p.gif")


def test_the_command_prints_one_document_and_refuses(tmp_path: Path) -> None:
    path = written(tmp_path / "a.jsonl", [*clean_rows(40), *BAD])
    done = tuneline_here("data", "check", path, "--set", "data.checks.refusals=refuse", "--json")
    assert done.returncode == 2
    report = json.loads(done.stdout)
    assert [c["num_rows"] for c in report["checks"] if c["check"] == "refusals"] == [1]
    assert "line 42: completion[0].content: refusal: As an AI language model" in done.stderr
    assert "data.checks.refusals: fix" in done.stderr


def test_the_command_checks_one_split_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    written(tmp_path / "data" / "train.jsonl", clean_rows(10))
    written(tmp_path / "data" / "test.jsonl", clean_rows(4))
    done = tuneline_here("data", "check", str(tmp_path / "data"), "--split", "test", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["rows"]["train"]["num_read"] == 4


def test_the_command_drops_and_counts_rows_that_cannot_be_read(tmp_path: Path) -> None:
    path = written(tmp_path / "a.jsonl", [*clean_rows(10), row("And this?", "", 11)])
    done = tuneline_here("data", "check", path, "--json")
    assert done.returncode == 2
    assert "--drop-bad-rows" in json.loads(done.stdout)["error"]["hint"]
    done = tuneline_here("data", "check", path, "--eval", path, "--drop-bad-rows", "--json")
    assert done.returncode == 0, done.stderr
    assert f"dropped: {path}: line 11: field 'completion': is empty" in done.stderr
    for side in json.loads(done.stdout)["rows"].values():
        assert side["num_read"] == 11
        assert side["dropped"]["cannot be read"] == 1
        assert side["num_read"] == side["num_kept"] + sum(side["dropped"].values())


def test_the_command_names_an_unknown_check(tmp_path: Path) -> None:
    path = written(tmp_path / "a.jsonl", clean_rows(10))
    done = tuneline_here("data", "check", path, "--set", "data.checks.refusal=fix")
    assert done.returncode == 2
    assert "--set: data.checks: refusal: unknown key (did you mean refusals?)" in done.stderr


def test_the_command_takes_only_keys_of_the_checks(tmp_path: Path) -> None:
    path = written(tmp_path / "a.jsonl", clean_rows(10))
    done = tuneline_here("data", "check", path, "--set", "data.seed=1")
    assert done.returncode == 2
    assert "--set data.seed=1: a data file has the section data.checks only" in done.stderr
