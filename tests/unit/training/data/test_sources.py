from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from training.config import DataConfig
from training.config.data import SourceConfig
from training.data.hub import choose_files
from training.data.prepare import dataset_rows, prepare_dataset
from training.data.sources import open_source, select_files, split_of
from training.data.weights import draw_copies
from tuneline.core.dataset import HELDOUT_FILE, TRAIN_FILE
from tuneline.core.errors import ConfigError, DataError


def _write(path: Path, *pairs: tuple[str, str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [{"prompt": prompt, "completion": answer} for prompt, answer in pairs]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("data/train-00000-of-00002.parquet", "train"),
        ("default/validation/0000.parquet", "validation"),
        ("dev.jsonl", "validation"),
        ("my_test_set.csv", "test"),
        ("contest.csv", ""),
        ("trainings.csv", ""),
        ("train/heldout.jsonl", "heldout"),
    ],
)
def test_a_split_is_a_word_of_the_name(name: str, split: str) -> None:
    assert split_of(name) == split


@pytest.mark.parametrize(
    ("names", "split", "chosen"),
    [
        (["b.jsonl", "a.jsonl", "README.md", ".git/x.json"], None, ["a.jsonl", "b.jsonl"]),
        (["a.csv.gz", "dataset_info.json"], None, ["a.csv.gz"]),
        (["train.csv", "test.csv"], None, ["train.csv"]),
        (["train.csv", "test.csv"], "test", ["test.csv"]),
        (["train.csv", "val.csv"], "validation", ["val.csv"]),
        (["test.csv"], None, ["test.csv"]),
        (["train.csv", "labels.json"], None, ["train.csv"]),
        (["train.csv", "more.csv"], "train", ["train.csv"]),
        (["a.ndjson", "b.ndjson"], None, ["a.ndjson", "b.ndjson"]),
    ],
)
def test_files_are_chosen_by_name(names: list[str], split: str | None, chosen: list[str]) -> None:
    assert select_files(names, split, "x") == chosen


@pytest.mark.parametrize(
    ("names", "split", "problem"),
    [
        (["README.md"], None, "has no data files; expected files of .jsonl, .json, .csv"),
        (["a.csv", "b.jsonl"], None, "has files of several formats: .csv, .jsonl"),
        (["validation.csv", "test.csv"], None, "has no split 'train'; found: test, validation"),
        (["train.csv"], "test", "has no split 'test'; found: train"),
        (["train.csv", "more.csv", "test.csv"], None, "files without a split: more.csv; expected"),
    ],
)
def test_files_that_do_not_fit_are_an_error(
    names: list[str], split: str | None, problem: str
) -> None:
    with pytest.raises(DataError) as caught:
        select_files(names, split, "x")
    assert problem in caught.value.message


@pytest.mark.parametrize(
    ("path", "options", "problem"),
    [
        ("none.csv", {}, "data.path: no such file"),
        ("rows.jsonl", {"split": "test"}, "data.split is for a folder or a dataset"),
        ("rows.jsonl/x", {}, "cannot be read: Not a directory"),
        ("saved", {}, "has Arrow files of datasets' save_to_disk"),
    ],
)
def test_a_path_that_is_no_source_is_an_error(
    tmp_path: Path, path: str, options: dict[str, Any], problem: str
) -> None:
    _write(tmp_path / "rows.jsonl", ("a", "b"))
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "data-00000-of-00001.arrow").write_bytes(b"")
    with pytest.raises(DataError) as caught:
        open_source(SourceConfig(path=path, **options), tmp_path, "data.path")
    assert problem in caught.value.message


def test_a_command_names_its_option_and_not_a_key(tmp_path: Path) -> None:
    _write(tmp_path / "rows.jsonl", ("a", "b"))
    with pytest.raises(DataError) as caught:
        open_source(SourceConfig(path="rows.jsonl", split="test"), tmp_path, "FILE")
    assert "--split is for a folder" in caught.value.message
    assert caught.value.hint == "Leave out --split."


def test_a_name_of_the_hub_without_its_mark_gets_a_hint(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        open_source(SourceConfig(path="owner/name"), tmp_path, "data.path")
    assert "hf:owner/name" in str(caught.value.hint)


CARD = {
    "configs": [
        {"config_name": "small", "data_files": "small/*.csv"},
        {
            "config_name": "large",
            "default": True,
            "data_files": [
                {"split": "train", "path": ["large/a-*.csv", "large/b.csv"]},
                {"split": "test", "path": "large/c.csv"},
            ],
        },
    ]
}
NAMES = ["README.md", "small/1.csv", "large/a-2.csv", "large/a-1.csv", "large/b.csv", "large/c.csv"]


@pytest.mark.parametrize(
    ("card", "names", "options", "chosen"),
    [
        (CARD, NAMES, {}, ["large/a-1.csv", "large/a-2.csv", "large/b.csv"]),
        (CARD, NAMES, {"split": "test"}, ["large/c.csv"]),
        (CARD, NAMES, {"config": "small"}, ["small/1.csv"]),
        ({}, ["rows.csv"], {}, ["rows.csv"]),
        ({}, ["data/train-0.parquet", "data/test-0.parquet"], {}, ["data/train-0.parquet"]),
        ({}, ["en/train.csv", "ko/train.csv"], {"config": "ko"}, ["ko/train.csv"]),
        ({"configs": [{"config_name": "default", "data_dir": "x"}]}, ["x/a.csv", "y.csv"], {},
         ["x/a.csv"]),
    ],
)  # fmt: skip
def test_the_card_of_a_hub_dataset_chooses_its_files(
    card: dict[str, Any], names: list[str], options: dict[str, Any], chosen: list[str]
) -> None:
    assert choose_files(names, card, SourceConfig(path="hf:a/b", **options), "hf:a/b") == chosen


@pytest.mark.parametrize(
    ("names", "options", "problem"),
    [
        (NAMES, {"config": "huge"}, "has the configurations small, large; found huge"),
        (NAMES, {"split": "dev"}, "has no split 'dev'; found: train, test"),
        (["a.csv"], {}, "no file of the dataset is large/a-*.csv or large/b.csv"),
    ],
)
def test_a_configuration_or_split_that_is_not_there_is_an_error(
    names: list[str], options: dict[str, Any], problem: str
) -> None:
    with pytest.raises(DataError) as caught:
        choose_files(names, CARD, SourceConfig(path="hf:a/b", **options), "hf:a/b")
    assert problem in caught.value.message


@pytest.mark.parametrize(
    ("weight", "total", "values"),
    [(1, 10, {1}), (2, 20, {2}), (0.5, 5, {0, 1}), (1.5, 15, {1, 2}), (0.25, 2, {0, 1})],
)
def test_a_weight_is_exact_and_seeded(weight: float, total: int, values: set[int]) -> None:
    copies = draw_copies(10, weight, "0/0")
    assert (sum(copies), set(copies)) == (total, values)
    assert draw_copies(10, weight, "0/0") == copies
    others = [draw_copies(10, weight, f"{seed}/0") for seed in range(9)]
    assert len(set(map(tuple, others))) > 1 or weight == int(weight)


def test_sources_are_mixed_by_weight_after_duplicates_and_leaks(tmp_path: Path) -> None:
    _write(tmp_path / "a.jsonl", *[(f"a{n}", "x") for n in range(8)], ("a0", "x"), ("h", "x"))
    _write(tmp_path / "shards" / "1.jsonl", ("b0", "y"), ("b1", "y"))
    _write(tmp_path / "shards" / "2.jsonl", ("b2", "y"), ("a1", "x"))
    _write(tmp_path / "heldout.jsonl", ("h", "x"))
    config = DataConfig.model_validate(
        {
            "sources": [{"path": "a.jsonl", "weight": 0.5}, {"path": "shards", "weight": 3}],
            "heldout_path": "heldout.jsonl",
        }
    )
    dataset = prepare_dataset(config, relative_to=tmp_path, out=tmp_path / "out")
    prompts = [row.prompt[0]["content"] for row in dataset_rows(dataset, TRAIN_FILE)]
    assert [p for p in prompts if p[0] == "b"] == ["b0"] * 3 + ["b1"] * 3 + ["b2"] * 3
    assert len(prompts) == 4 + 9 and len({p for p in prompts if p[0] == "a"}) == 4
    metrics = dataset.manifest.metrics
    assert metrics["num_rows_read"] == 14
    assert metrics["dropped"] == {
        "exact duplicate": 2, "prompt is held out": 1, "left out by weight": 4,
    }  # fmt: skip
    assert metrics["num_repeated_by_weight"] == 6
    roles = [(entry.role, entry.kind) for entry in dataset.manifest.inputs]
    assert roles == [
        ("data.sources.0.path", "file"),
        ("data.sources.1.path", "files"),
        ("data.heldout_path", "file"),
    ]
    assert str(tmp_path) not in (dataset.path / "manifest.json").read_text()
    assert "shards" not in (dataset.path / "manifest.json").read_text()


def test_held_out_rows_come_from_another_split(tmp_path: Path) -> None:
    _write(tmp_path / "data" / "train.jsonl", ("a", "1"), ("b", "2"))
    _write(tmp_path / "data" / "test.jsonl", ("c", "3"))
    config = DataConfig(path="data", heldout_split="test")
    dataset = prepare_dataset(config, relative_to=tmp_path, out=tmp_path / "out")
    assert [row.answer for row in dataset_rows(dataset, TRAIN_FILE)] == ["1", "2"]
    assert [row.answer for row in dataset_rows(dataset, HELDOUT_FILE)] == ["3"]


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({}, "give either path or sources"),
        ({"path": "a", "sources": [{"path": "b"}]}, "give either path or sources"),
        ({"path": "a", "heldout_split": "test", "heldout_fraction": 0.1}, "heldout_split or held"),
        ({"sources": [{"path": "a"}], "split": "train"}, "split: belongs to an entry of sources"),
        ({"sources": [{"path": "a"}], "heldout_split": "test"}, "needs path or heldout_path"),
        ({"path": "a", "shape": "csv"}, "shape"),
        ({"sources": [{"path": "a", "weight": 0}]}, "weight"),
    ],
)
def test_options_that_do_not_fit_are_an_error(values: dict[str, Any], problem: str) -> None:
    from tuneline.core.config import validate_config

    with pytest.raises(ConfigError, match=problem):
        validate_config(DataConfig, values, "run.yaml: data")


def test_bad_rows_are_dropped_and_counted_on_request(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _write(tmp_path / "rows.jsonl", ("a", "1"), ("b", " "), ("c", "3"), ("c", "3"))
    config = DataConfig(path="rows.jsonl", bad_rows="drop", heldout_fraction=0.5)
    with caplog.at_level("WARNING"):
        dataset = prepare_dataset(config, relative_to=tmp_path, out=tmp_path / "out")
    metrics = dataset.manifest.metrics
    assert metrics["dropped"] == {"cannot be read": 1, "exact duplicate": 1, "held out": 1}
    assert metrics["num_rows_read"] == 4 == metrics["num_train"] + 3
    assert "line 2: field 'completion': is empty" in caplog.text


def test_files_of_another_format_that_a_split_leaves_out_are_named(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level("INFO", logger="tuneline"):
        assert select_files(["train-0.jsonl", "rows.csv"], None, "x") == ["train-0.jsonl"]
    assert "x: not of the split train, left out: rows.csv" in caplog.text


@pytest.mark.parametrize(("key", "name"), [("FILE", "--split"), ("data.path", "data.split")])
def test_a_wrong_split_is_mended_where_it_was_given(tmp_path: Path, key: str, name: str) -> None:
    _write(tmp_path / "train.jsonl", ("a", "b"))
    with pytest.raises(DataError, match="has no split 'test'; found: train") as caught:
        open_source(SourceConfig(path=str(tmp_path), split="test"), Path(), key)
    assert f"Set {name} to one of them" in str(caught.value.hint)


@pytest.mark.parametrize("path", ["hf:", "hf:a/b/c", "hf:two words", "hf:/name"])
def test_a_name_that_no_dataset_has_is_an_error_of_usage(path: str) -> None:
    with pytest.raises(DataError, match="is not the name of a dataset; expected hf:OWNER/NAME"):
        open_source(SourceConfig(path=path), Path(), "FILE")
