"""Rows over the limit of tokens, counted by the tokenizer of the shipped tiny base."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.unit.training.data.checks.made import clean_rows, row
from training.config.checks import ChecksConfig, LengthCheck
from training.data.checks.length import LengthLimit, limit_of, num_tokens, repair_length
from training.data.checks.run import Checked, check_rows, require_accepted
from training.data.checks.spool import Spool
from training.data.row import Row
from training.rendering.chat import render_rows
from training.rendering.pairs import render_pairs
from tuneline.core.errors import DataError
from tuneline.core.messages import Message
from tuneline.models.chat import prompt_token_ids
from tuneline.models.source import resolve_model
from tuneline.models.stop_tokens import served_stop_ids
from tuneline.models.tokenizer import load_tokenizer

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


def count(one: Row, **more: Any) -> int:
    return num_tokens(one, LengthLimit(BASE, 1, LengthCheck(), **more))


def checked(tmp_path: Path, **check: Any) -> Checked:
    spool = Spool(tmp_path / "rows.spool")
    spool.add([*clean_rows(10), LONG])
    return check_rows(spool, ChecksConfig(length=LengthCheck(**check)), limit=limit(120, **check))


def test_the_count_is_that_of_the_chat_template() -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(BASE)
    text = tokenizer.apply_chat_template(LONG.messages, tokenize=False)
    # Training ends with the stop token; the line end after it is not part of a row.
    text = text[: text.rindex(tokenizer.eos_token) + len(tokenizer.eos_token)]
    assert count(LONG) == len(tokenizer(text, add_special_tokens=False)["input_ids"])


def test_a_long_row_is_refused_with_its_number_of_tokens(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        require_accepted(checked(tmp_path))
    number = count(LONG)
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
    assert 110 < count(last) <= 120


def test_cut_left_drops_the_oldest_turns_and_keeps_the_system_message() -> None:
    shorter = repair_length(TURNS, limit(count(TURNS) - 1, action="fix", by="cut_left"))
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
    assert 45 < count(shorter) <= 50


REASONED = Row(
    prompt=(
        {"role": "user", "content": "Does it print?"},
        {"role": "assistant", "reasoning_content": "Think. " * 200, "content": "No."},
        {"role": "user", "content": "And now?"},
    ),
    completion=({"role": "assistant", "content": "Yes."},),
    line=3,
    file="rows.jsonl",
)
# As Qwen 3 does: reasoning of turns before the last user's message is left out.
FORGETFUL = """{%- set ns = namespace(last=0) -%}
{%- for m in messages -%}
{%- if m.role == "user" -%}{%- set ns.last = loop.index0 -%}{%- endif -%}
{%- endfor -%}
{%- for m in messages -%}
{{- "<|im_start|>" + m.role + "\\n" -}}
{%- if m.reasoning_content and loop.index0 > ns.last -%}
{{- "<think>\\n" + m.reasoning_content + "\\n</think>\\n\\n" -}}
{%- endif -%}
{{- m.content + "<|im_end|>\\n" -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- "<|im_start|>assistant\\n" -}}{%- endif -%}"""
REFUSING = """{%- if messages[0].role == "system" -%}
{{ raise_exception("System role not supported") }}
{%- endif -%}"""


def base_with(tmp_path: Path, template: str) -> Path:
    """Return a copy of the tiny base with another chat template."""
    folder = shutil.copytree(BASE, tmp_path / "base")
    (folder / "chat_template.jinja").write_text(template)
    return folder


def trained_length(one: Row, folder: Path = BASE) -> int:
    """Return the tokens of the longest sequence that training makes of a row."""
    tokenizer = load_tokenizer(folder)
    rules: dict[str, Any] = {
        "stop_ids": served_stop_ids(folder, tokenizer),
        "max_length": 10_000,
        "file": "f",
    }
    if one.rejected:
        return render_pairs(tokenizer, [one], **rules)[0].num_tokens
    return max(len(example.input_ids) for example in render_rows(tokenizer, [one], **rules))


@pytest.mark.parametrize(
    "one",
    [
        LONG,
        TURNS,
        replace(LONG, label=True),
        replace(LONG, rejected=({"role": "assistant", "content": "Category: Software " * 9},)),
        Row(text=LONG.prompt[0]["content"]),
    ],
    ids=["answer", "turns", "label", "pair", "text"],
)
def test_the_count_is_that_of_training(one: Row) -> None:
    assert count(one) == trained_length(one)


def test_a_turn_with_reasoning_that_the_template_drops_later_counts(tmp_path: Path) -> None:
    folder = base_with(tmp_path, FORGETFUL)
    small = LengthLimit(folder, 100, LengthCheck(action="fix"))
    assert num_tokens(REASONED, small) == trained_length(REASONED, folder) > 400
    assert num_tokens(REASONED, replace(small, train_on="last_turn")) < 100


def test_text_that_is_cut_fits_with_its_end_token() -> None:
    shorter = repair_length(
        Row(text=LONG.prompt[0]["content"]), limit(64, action="fix", by="cut_left")
    )
    assert shorter is not None
    assert 60 < trained_length(shorter) <= 64


def test_the_answers_that_a_model_samples_count() -> None:
    prompt = Row(prompt=LONG.prompt)
    expected = len(prompt_token_ids(load_tokenizer(BASE), prompt.prompt)) + 256
    assert count(prompt, num_sampled_tokens=256) == expected
    assert count(replace(prompt, completion=LONG.completion), num_sampled_tokens=256) == expected


@pytest.mark.parametrize("completion", [TURNS.completion, ()], ids=["pair", "text"])
def test_a_row_that_the_template_refuses_is_named(
    completion: tuple[Message, ...], tmp_path: Path
) -> None:
    folder = base_with(tmp_path, REFUSING + (BASE / "chat_template.jinja").read_text())
    refused = replace(TURNS, completion=completion, line=7, file="rows.jsonl")
    with pytest.raises(DataError) as caught:
        num_tokens(refused, LengthLimit(folder, 100, LengthCheck()))
    assert caught.value.problems == [
        "rows.jsonl: line 7: the chat template refuses the row: System role not supported"
    ]
    assert caught.value.exit_code == 2


def test_the_limit_of_a_run_has_all_that_changes_a_count() -> None:
    from training.config import DataConfig, TrainingConfig

    rewards = {"type": "grpo", "reward_funcs": "rewards.py:f", "max_completion_length": 40}
    training = TrainingConfig.model_validate(
        {"method": rewards, "max_length": 300, "train_on": "last_turn", "eos_token": "<|im_end|>"}
    )
    found = limit_of(DataConfig(path="rows.jsonl"), BASE, training)
    assert (found.max_length, found.num_sampled_tokens) == (300, 40)
    assert (found.train_on, found.eos_token) == ("last_turn", "<|im_end|>")
