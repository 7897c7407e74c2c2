"""Rows over the limit of tokens, counted by the tokenizer of the shipped tiny base."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.unit.training.data.checks.made import clean_rows, row
from training.config.checks import ChecksConfig, LengthCheck
from training.data.checks.length import LengthLimit, num_tokens, repair_length
from training.data.checks.run import Checked, check_rows, require_accepted
from training.data.checks.spool import Spool
from training.data.row import Row
from tuneline.core.errors import DataError
from tuneline.models.source import resolve_model

BASE = resolve_model("tiny-base").path
LONG = row("The first words. " + "Please look at the printer on the third floor. " * 20 + "End?",
           "Category: Hardware", 11)  # fmt: skip
TURNS = Row(
    prompt=(
        {"role": "system", "content": "Answer in one line."},
        {"role": "user", "content": "The printer on the third floor does not print. " * 5},
        {"role": "assistant", "content": "Please turn it off and on again."},
        {"role": "user", "content": "It still does not print."},
    ),
    completion=({"role": "assistant", "content": "Category: Hardware"},),
    untrained=(2,),
)


def limit(max_length: int, **check: Any) -> LengthLimit:
    return LengthLimit(BASE, max_length, LengthCheck.model_validate(check))


def checked(tmp_path: Path, **check: Any) -> Checked:
    spool = Spool(tmp_path / "rows.spool")
    spool.add([*clean_rows(10), LONG])
    return check_rows(spool, ChecksConfig(length=LengthCheck(**check)), limit=limit(120, **check))


def test_the_count_is_that_of_the_chat_template() -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(BASE)
    text = tokenizer.apply_chat_template(LONG.messages, tokenize=False)
    assert num_tokens(LONG, BASE) == len(tokenizer(text, add_special_tokens=False)["input_ids"])


def test_a_long_row_is_refused_with_its_number_of_tokens(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        require_accepted(checked(tmp_path))
    number = num_tokens(LONG, BASE)
    assert caught.value.problems == [
        f"rows.jsonl: line 11: prompt: too long: {number:,} tokens; at most 120"
    ]
    assert caught.value.exit_code == 2
    assert "training.max_length" in str(caught.value.hint)


def test_fix_drops_a_long_row(tmp_path: Path) -> None:
    found = checked(tmp_path, action="fix")
    assert [kept.line for kept in found.rows(False)] == list(range(1, 11))


def test_cut_left_keeps_the_end_of_the_prompt_and_the_answer(tmp_path: Path) -> None:
    found = checked(tmp_path, action="fix", by="cut_left")
    (result,) = [result for result in found.results if result.check.name == "length"]
    assert (result.num_rows, result.num_changed, result.num_dropped) == (1, 1, 0)
    *_, last = found.rows(False)
    assert last.answer == LONG.answer
    assert LONG.prompt[0]["content"].endswith(last.prompt[0]["content"])
    assert 110 < num_tokens(last, BASE) <= 120


def test_cut_left_drops_the_oldest_turns_and_keeps_the_system_message() -> None:
    shorter = repair_length(TURNS, limit(num_tokens(TURNS, BASE) - 1, action="fix", by="cut_left"))
    assert shorter is not None
    assert [message["role"] for message in shorter.prompt] == ["system", "user"]
    assert shorter.prompt[-1] == TURNS.prompt[-1]
    assert shorter.untrained == ()


def test_a_row_whose_answer_does_not_fit_is_dropped() -> None:
    long_answer = row("Who?", LONG.prompt[0]["content"])
    assert repair_length(long_answer, limit(60, action="fix", by="cut_left")) is None


def test_plain_text_loses_its_beginning() -> None:
    text = Row(text=LONG.prompt[0]["content"])
    shorter = repair_length(text, limit(50, action="fix", by="cut_left"))
    assert shorter is not None and shorter.text is not None and text.text is not None
    assert text.text.endswith(shorter.text)
    assert 45 < num_tokens(shorter, BASE) <= 50
