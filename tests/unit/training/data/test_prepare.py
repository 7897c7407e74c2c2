from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from training.config import DataConfig
from training.data.findings import data_findings
from training.data.prepare import dataset_rows, prepare_dataset
from training.data.rows import read_rows
from tuneline.core.artifact import Artifact, verify_artifact
from tuneline.core.dataset import HELDOUT_FILE, TRAIN_FILE
from tuneline.core.errors import DataError, NotAnArtifactError


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [{"role": "user", "content": "Is it on?"},
                      {"role": "assistant", "content": "Yes.", "weight": 0},
                      {"role": "user", "content": "And number N?"},
                      {"role": "assistant", "content": "No."}], "output": 1, "text": "x"},
        {"prompt": "N?", "chosen": "Yes.", "rejected": "No.", "id": "007", "fields": 2},
        {"text": "Number N.", "id": None},
    ],
    ids=["untrained", "pair", "text"],
)  # fmt: skip
def test_a_file_of_a_dataset_is_read_as_the_rows_that_it_was_made_of(
    tmp_path: Path, row: dict[str, Any]
) -> None:
    lines = [json.dumps(row).replace("N", str(n)) + "\n" for n in range(20, 26)]
    (tmp_path / "rows.jsonl").write_text("".join(lines))
    shape = "messages" if "messages" in row else None
    config = DataConfig.model_validate({"path": "rows.jsonl", "shape": shape})
    dataset = prepare_dataset(config, relative_to=tmp_path, out=tmp_path / "ds")
    stored = dataset_rows(dataset, TRAIN_FILE)
    assert len(stored) == 5
    again = read_rows(dataset.path / TRAIN_FILE)
    assert [replace(one, file=TRAIN_FILE) for one in again] == stored


def _write(path: Path, rows: list[tuple[str, str]]) -> Path:
    lines = [json.dumps({"instruction": a, "output": b}) + "\n" for a, b in rows]
    path.write_text("".join(lines))
    return path


def _prepare(tmp_path: Path, rows: list[tuple[str, str]], *, out: str = "ds", seed: int = 0,
             fraction: float | None = None, heldout: list[tuple[str, str]] | None = None
             ) -> Artifact:  # fmt: skip
    if heldout:
        _write(tmp_path / "heldout.jsonl", heldout)
    config = DataConfig(
        path="rows.jsonl",
        heldout_path="heldout.jsonl" if heldout else None,
        heldout_fraction=fraction,
        seed=seed,
    )
    _write(tmp_path / "rows.jsonl", rows)
    return prepare_dataset(config, relative_to=tmp_path, out=tmp_path / out)


def _prompts(dataset: Artifact, file: str) -> list[str]:
    return [row.prompt[-1]["content"] for row in dataset_rows(dataset, file)]


MANY = [(f"question {n}", f"answer {n}") for n in range(50)]


def test_a_sample_has_rows_of_the_whole_file_in_order(tmp_path: Path) -> None:
    dataset = _prepare(tmp_path, MANY)
    rows = dataset_rows(dataset, TRAIN_FILE)
    sample = dataset_rows(dataset, TRAIN_FILE, 10, drawn=True)
    lines = [row.line for row in sample]
    assert len(set(lines)) == 10
    assert lines == sorted(lines)
    assert max(lines) > 20
    assert sample == [rows[line - 1] for line in lines]
    assert sample == dataset_rows(dataset, TRAIN_FILE, 10, drawn=True)
    assert dataset_rows(dataset, TRAIN_FILE, 10) == rows[:10]


def test_the_artifact_holds_exactly_its_files_in_conversational_form(tmp_path: Path) -> None:
    dataset = _prepare(tmp_path, MANY)
    verify_artifact(dataset)
    assert [entry.path for entry in dataset.manifest.files] == [
        "heldout.jsonl", "train.jsonl",
    ]  # fmt: skip
    first = json.loads((dataset.path / TRAIN_FILE).read_text().split("\n")[0])
    assert first == {
        "prompt": [{"role": "user", "content": "question 0"}],
        "completion": [{"role": "assistant", "content": "answer 0"}],
    }
    assert [(entry.role, entry.kind) for entry in dataset.manifest.inputs] == [
        ("data.path", "file")
    ]
    assert str(tmp_path) not in (dataset.path / "manifest.json").read_text()


def test_the_split_is_whole_disjoint_and_the_same_each_time(tmp_path: Path) -> None:
    first, again = _prepare(tmp_path, MANY, out="a"), _prepare(tmp_path, MANY, out="b")
    other = _prepare(tmp_path, MANY, out="c", seed=1)
    train, heldout = _prompts(first, TRAIN_FILE), _prompts(first, HELDOUT_FILE)
    assert len(heldout) == 5
    assert sorted(train + heldout) == sorted(prompt for prompt, _ in MANY)
    assert first.digest == again.digest
    assert _prompts(other, HELDOUT_FILE) != heldout


def test_one_prompt_is_never_on_both_sides_of_a_split(tmp_path: Path) -> None:
    rows = [(f"Question  {n % 10}" if n < 10 else f"question {n % 10}", f"{n}") for n in range(30)]
    dataset = _prepare(tmp_path, rows, fraction=0.5)
    train = {" ".join(p.casefold().split()) for p in _prompts(dataset, TRAIN_FILE)}
    heldout = {" ".join(p.casefold().split()) for p in _prompts(dataset, HELDOUT_FILE)}
    assert (len(train), len(heldout)) == (5, 5)
    assert not train & heldout


def test_duplicates_are_dropped_and_order_is_kept(tmp_path: Path) -> None:
    rows = [("b", "1"), ("a", "2"), ("b", "1"), ("c", "3"), ("a", "2")]
    dataset = _prepare(tmp_path, rows, heldout=[("z", "9"), ("z", "9")])
    assert _prompts(dataset, TRAIN_FILE) == ["b", "a", "c"]
    metrics = dataset.manifest.metrics
    assert metrics["num_duplicates_dropped"] == 2
    assert metrics["num_heldout_duplicates_dropped"] == 1
    assert (metrics["num_train"], metrics["num_heldout"]) == (3, 1)


def test_training_rows_whose_prompt_is_held_out_are_dropped(tmp_path: Path) -> None:
    dataset = _prepare(
        tmp_path, [("What IS it?", "x"), ("b", "2")], heldout=[("what is  it?", "y")]
    )
    assert _prompts(dataset, TRAIN_FILE) == ["b"]
    assert dataset.manifest.metrics["num_leaked_dropped"] == 1


def test_one_prompt_with_different_answers_is_counted(tmp_path: Path) -> None:
    dataset = _prepare(tmp_path, [("a", "1"), ("a", "2"), ("b", "1")], heldout=[("z", "9")])
    assert dataset.manifest.metrics["num_prompts_with_different_answers"] == 1
    assert dataset.manifest.metrics["num_train"] == 3


def test_the_report_gives_lengths(tmp_path: Path) -> None:
    rows = [(f"q{n:03}", "x" * n) for n in range(1, 101)]
    dataset = _prepare(tmp_path, rows, heldout=[("z", "9")])
    # Nearest-rank: the 95th of 100 values; the median of 1..100 is 50.5.
    assert dataset.manifest.metrics["answer_characters"] == {
        "min": 1, "median": 50.5, "p95": 95, "max": 100,
    }  # fmt: skip


def test_other_checks_that_leave_the_same_rows_make_an_equal_dataset(tmp_path: Path) -> None:
    rows = [{"prompt": f"q {n}", "completion": f"a {n}"} for n in range(8)]
    rows.append({"prompt": "Who?", "completion": "As an AI language model, I cannot say."})
    found = {
        action: _prepare_rows(tmp_path, rows, out=action, checks={"refusals": action})
        for action in ("warn", "ignore", "fix")
    }
    assert found["warn"].digest == found["ignore"].digest != found["fix"].digest
    findings = {action: data_findings(dataset) for action, dataset in found.items()}
    assert [len(findings[action]) for action in ("warn", "ignore", "fix")] == [1, 0, 1]
    assert "refusal: As an AI language model" in findings["warn"][0].example


def test_other_line_ends_inside_text_survive(tmp_path: Path) -> None:
    text = "one\u2028two\u0085three\rfour"
    dataset = _prepare(tmp_path, [(text, text), ("b", "c")], heldout=[("z", "9")])
    row = dataset_rows(dataset, TRAIN_FILE)[0]
    assert (row.prompt[0]["content"], row.answer) == (text, text)


def test_nothing_left_to_train_on_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="none is left"):
        _prepare(tmp_path, [("a", "1")], heldout=[("a", "1")])
    with pytest.raises(DataError, match="one distinct prompt"):
        _prepare(tmp_path, [("a", "1"), ("a", "2")])
    assert not (tmp_path / "ds").exists()


def test_a_problem_in_the_heldout_file_names_that_file(tmp_path: Path) -> None:
    _write(tmp_path / "rows.jsonl", MANY)
    heldout = tmp_path / "heldout.jsonl"
    heldout.write_text('{"instruction": "a"}\n')
    config = DataConfig(path="rows.jsonl", heldout_path="heldout.jsonl")
    with pytest.raises(DataError, match=r"heldout\.jsonl: line 1: missing field 'output'"):
        prepare_dataset(config, relative_to=tmp_path, out=tmp_path / "ds")


def test_rows_of_something_else_are_refused(tmp_path: Path) -> None:
    dataset = _prepare(tmp_path, MANY)
    (dataset.path / TRAIN_FILE).write_text('{"words": "a"}\n')
    with pytest.raises(NotAnArtifactError, match=r"train\.jsonl: line 1"):
        dataset_rows(dataset, TRAIN_FILE)


def _prepare_rows(
    tmp_path: Path, rows: list[dict[str, Any]], out: str = "ds", **config: Any
) -> Artifact:
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = config if "sources" in config else {"path": "rows.jsonl", **config}
    return prepare_dataset(
        DataConfig.model_validate(config), relative_to=tmp_path, out=tmp_path / out
    )


@pytest.mark.parametrize(
    ("column", "rows"),
    [
        ("label", [{"prompt": f"q {n}", "completion": f"a {n}", "label": n % 5 > 0}
                   for n in range(20)]),
        ("completion", [{"prompt": f"q {n}", "completion": "ham" if n % 5 else "spam"}
                        for n in range(20)]),
        ("completion", [{"instruction": f"q {n}", "output": "ham" if n % 5 else "spam"}
                        for n in range(20)]),
        ("system", [{"prompt": f"q {n}", "completion": f"a {n}", "system": f"{n % 5 > 0}"}
                    for n in range(20)]),
    ],
)  # fmt: skip
def test_a_split_is_stratified_by_a_part_of_the_row(
    tmp_path: Path, column: str, rows: list[dict[str, Any]]
) -> None:
    dataset = _prepare_rows(tmp_path, rows, stratify_by=column, heldout_fraction=0.25)
    heldout = dataset_rows(dataset, HELDOUT_FILE)
    values = [json.dumps(row.column(column)) for row in heldout]
    # A quarter of 4 rows with one value, and of 16 rows with the other.
    assert sorted(values.count(value) for value in set(values)) == [1, 4]


QUESTIONS = [{"prompt": f"q {n}", "completion": f"a {n}", "id": n, "one": 1} for n in range(20)]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"stratify_by": "id"},
         "data.stratify_by: each of the 20 values of 'id' has one prompt; expected a value with"),
        ({"group_by": "one"},
         "data.group_by: 'one' ties all 20 prompts of rows.jsonl to one another; expected at"),
        ({"group_by": "id", "stratify_by": "id"}, "'id' has one group; expected"),
        ({"stratify_by": "label"}, "rows.jsonl: line 1: column 'label' is missing"),
        ({"sources": [{"path": "rows.jsonl", "weight": 0.01}], "heldout_fraction": 0.2},
         "data.sources: the weights leave none of 16 training rows; expected at least one"),
    ],
)  # fmt: skip
def test_a_split_or_a_weight_that_leaves_no_row_says_why(
    tmp_path: Path, config: dict[str, Any], message: str
) -> None:
    with pytest.raises(DataError) as caught:
        _prepare_rows(tmp_path, QUESTIONS, **config)
    assert message in str(caught.value)
    assert "Try: " in str(caught.value.hint)
    assert caught.value.exit_code == 2
    assert not (tmp_path / "ds").exists()


def test_a_prompt_that_all_groups_share_does_not_tie_them(tmp_path: Path) -> None:
    rows = [
        {"prompt": prompt, "completion": f"answer {n} of {who}", "who": who}
        for who in range(10)
        for n, prompt in enumerate(("Hello", f"order {who * 37}", f"bill {who * 59}"))
    ]
    dataset = _prepare_rows(tmp_path, rows, group_by="who", heldout_fraction=0.2)
    train, held = (dataset_rows(dataset, file) for file in (TRAIN_FILE, HELDOUT_FILE))
    assert {row.fields["who"] for row in train}.isdisjoint(row.fields["who"] for row in held)
    # Two of ten groups with three rows each; the greetings of the other eight are leaks.
    assert (len(held), len(train)) == (6, 16)
    assert dataset.manifest.metrics["dropped"] == {"prompt is held out": 8, "held out": 6}


@pytest.mark.parametrize(
    ("column", "number"), [("pair", "10 of 20 prompts are held out"), ("half", None)]
)
def test_a_split_of_many_small_strata_says_that_it_holds_out_more(
    tmp_path: Path, column: str, number: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [row | {"pair": n // 2, "half": n % 2} for n, row in enumerate(QUESTIONS)]
    with caplog.at_level("WARNING"):
        _prepare_rows(tmp_path, rows, stratify_by=column)
    assert ("are held out" in caplog.text) == (number is not None)
    assert (number or "") in caplog.text


def test_a_missing_column_lists_the_columns_that_are_there(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        _prepare_rows(tmp_path, QUESTIONS, group_by="day")
    assert caught.value.hint == "Try: one of id, one, label, completion, prompt, system."


@pytest.mark.parametrize(
    ("empty", "name"), [("heldout.jsonl", "held-out"), ("rows.jsonl", "training")]
)
def test_a_side_whose_rows_are_all_dropped_is_refused(
    tmp_path: Path, empty: str, name: str
) -> None:
    for file in ("heldout.jsonl", "rows.jsonl"):
        answer = "..." if file == empty else "Yes."
        rows = [{"prompt": f"{file} {n}", "completion": answer} for n in range(2)]
        (tmp_path / file).write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = DataConfig.model_validate(
        {"path": "rows.jsonl", "heldout_path": "heldout.jsonl", "checks": {"empty_answers": "fix"}}
    )
    with pytest.raises(DataError) as caught:
        prepare_dataset(config, relative_to=tmp_path, out=tmp_path / "ds")
    assert caught.value.problems == [
        f"{empty}: the checks drop all 2 {name} rows: 2 answers without text; expected one row at "
        "least"
    ]
    assert not (tmp_path / "ds").exists()
