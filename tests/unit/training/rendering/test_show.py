"""The tokens of a row as the command prints them, next to the labels that training gets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.integration.training.tiny import CHATML, make_tokenizer
from training import show_data
from training.config import DataConfig, TrainingConfig
from training.data.row import Row
from training.rendering.chat import IGNORED, render_rows
from training.rendering.show import show_row
from tuneline.commands.data import data_show
from tuneline.core.errors import ConfigError, DataError
from tuneline.models.source import resolve_model

USER = {"role": "user", "content": "Hi"}
TALK = [USER, {"role": "assistant", "content": "Ho"}, USER, {"role": "assistant", "content": "Hum"}]


def _answer(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def _shown(row: Row, **options: Any) -> list[tuple[str, str]]:
    """Return each side with its trained text."""
    tokenizer = make_tokenizer(CHATML)
    stop_ids = [tokenizer.eos_token_id]
    examples = show_row(tokenizer, row, stop_ids=stop_ids, file="f", **options)
    return [
        (one.side, "".join(token.text for token in one.tokens if token.is_trained))
        for one in examples
    ]


def test_the_trained_tokens_are_the_labels_of_training() -> None:
    tokenizer = make_tokenizer(CHATML)
    row = Row(tuple(TALK[:-1]), (TALK[-1],))
    stop_ids = [tokenizer.eos_token_id]
    (example,) = show_row(tokenizer, row, stop_ids=stop_ids, file="f")
    (trained,) = render_rows(tokenizer, [row], stop_ids=stop_ids, max_length=512, file="f")
    assert [token.id for token in example.tokens] == trained.input_ids
    labels = [token.id if token.is_trained else IGNORED for token in example.tokens]
    assert labels == trained.labels
    assert sum(label != IGNORED for label in labels) == trained.num_trained_tokens > 4


def test_both_sides_of_a_pair_are_shown() -> None:
    pair = Row((USER,), (_answer("yes"),), rejected=(_answer("no"),))
    found = _shown(pair)
    assert [side for side, _ in found] == ["chosen", "rejected"]
    assert [text for _, text in found] == ["yes<|im_end|>", "no<|im_end|>"]


@pytest.mark.parametrize(
    ("row", "side", "num_ends"),
    [
        (Row((USER,)), "prompt", 0),
        (Row((USER,), (_answer("a"),), label=True), "answer", 1),
        (Row(tuple(TALK[:-1]), (TALK[-1],), label=False), "answer", 1),
        (Row(tuple(TALK[:-1]), (TALK[-1],)), "answer", 2),
        (Row(text="red"), "answer", 1),
    ],
)
def test_every_kind_of_row_is_shown(row: Row, side: str, num_ends: int) -> None:
    ((found, text),) = _shown(row)
    assert (found, text.count("im_end")) == (side, num_ends)


def _file(folder: Path) -> Path:
    path = folder / "rows.jsonl"
    rows = [{"messages": TALK}, {"prompt": "Is it on?", "completion": "Yes.\n"}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_row_of_a_file_is_printed_with_marks_and_ids(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data_show(str(_file(tmp_path)), row=1)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("answer: ") and lines[0].endswith(" trained (*)")
    marked = "".join(json.loads(line.split(maxsplit=3)[3]) for line in lines if line[0] == "*")
    assert marked == "Ho<|im_end|>Hum<|im_end|>"
    assert "\x1b" not in "".join(lines)
    data_show(str(_file(tmp_path)), row=1, overrides=["training.train_on=last_turn"], as_json=True)
    (example,) = json.loads(capsys.readouterr().out)["examples"]
    texts = [token["text"] for token in example["tokens"] if token["is_trained"]]
    assert "".join(texts) == "Hum<|im_end|>"
    assert {type(token["id"]) for token in example["tokens"]} == {int}


def test_a_row_that_is_not_there_is_refused(tmp_path: Path) -> None:
    path, base = _file(tmp_path), resolve_model("tiny-base")
    with pytest.raises(DataError, match="has no row 3; expected a row from 1 to 2") as caught:
        show_data(DataConfig(path=str(path)), TrainingConfig(), base, 3, Path())
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("bad_rows", "message"),
    [("refuse", "line 1: field 'completion': is empty"), ("drop", "row 1 cannot be read")],
)
def test_a_row_is_counted_with_those_that_cannot_be_read(
    tmp_path: Path, bad_rows: str, message: str
) -> None:
    path, base = tmp_path / "rows.jsonl", resolve_model("tiny-base")
    rows = [{"prompt": "a", "completion": ""}, {"prompt": "b", "completion": "Two."}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = DataConfig.model_validate({"path": str(path), "bad_rows": bad_rows})
    with pytest.raises(DataError, match=message):
        show_data(data, TrainingConfig(), base, 1, Path())
    (example,) = show_data(data, TrainingConfig(), base, 2, Path())
    assert "".join(t.text for t in example.tokens if t.is_trained).startswith("Two.")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("serving.port=1", "expected a key of data or training"),
        ("data.chat_template_kwargs.enable_thinkin=false", "the chat template reads no such"),
        ("training.train_on=first", "train_on"),
    ],
)
def test_an_override_that_cannot_be_used_is_refused(
    tmp_path: Path, override: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        data_show(str(_file(tmp_path)), row=1, overrides=[override])
