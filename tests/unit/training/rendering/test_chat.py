from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.integration.training.tiny import CHATML, make_tokenizer
from training.data.row import Row
from training.rendering.chat import IGNORED, Rendered, render_rows
from tuneline.core.errors import ArtifactError, ConfigError, DataError
from tuneline.models.chat import prompt_token_ids, require_chat_template
from tuneline.models.stop_tokens import served_stop_ids


def _row(question: str, answer: str, line: int) -> Row:
    return Row(
        ({"role": "user", "content": question},),
        ({"role": "assistant", "content": answer},),
        line=line,
    )


ROWS = [_row("Hi there", "Ho", 1), _row("How long?", "Quite a long answer", 2)]

NO_STOP = CHATML.replace("<|im_end|>\n{% endfor %}", "\n{% endfor %}")
OTHER_STOP = CHATML.replace("<|im_end|>", "<|im_start|>")
NO_PREFIX = CHATML.replace("<|im_start|>assistant\n", "<|im_start|>assistant\nAnswer: ")
REFUSING = "{{ raise_exception('roles must alternate') }}"
REASONING = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['role'] == 'assistant' %}<think>\n\n</think>\n\n{% endif %}{{ m['content'] }}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def _render(
    template: str, rows: list[Row] | None = None, *, max_length: int = 512, extra_stop: bool = False
) -> tuple[Any, list[Rendered]]:
    tokenizer = make_tokenizer(template)
    stop_ids = [tokenizer.eos_token_id]
    if extra_stop:
        stop_ids.append(tokenizer.convert_tokens_to_ids("<|im_start|>"))
    rows = ROWS if rows is None else rows
    return tokenizer, render_rows(
        tokenizer, rows, stop_ids=stop_ids, max_length=max_length, file="train.jsonl"
    )


def test_the_answer_and_its_stop_token_are_trained_and_nothing_else() -> None:
    tokenizer, rendered = _render(CHATML)
    assert len(rendered) == len(ROWS)
    for row, ids in zip(ROWS, rendered, strict=True):
        trained = [label for label in ids.labels if label != IGNORED]
        assert tokenizer.decode(trained) == f"{row.answer}<|im_end|>"
        assert len(trained) == ids.num_trained_tokens
        assert ids.input_ids[: ids.num_prompt_tokens] == prompt_token_ids(tokenizer, row.prompt)
        assert len(ids.labels) == len(ids.input_ids)
    text = tokenizer.decode(rendered[0].input_ids)
    assert text == "<|im_start|>user\nHi there<|im_end|>\n<|im_start|>assistant\nHo<|im_end|>"


def test_a_template_that_opens_answers_with_reasoning_trains_it() -> None:
    tokenizer, rendered = _render(REASONING)
    trained = [label for label in rendered[0].labels if label != IGNORED]
    assert tokenizer.decode(trained) == "<think>\n\n</think>\n\nHo<|im_end|>"


def test_an_untrained_stop_token_is_an_error_that_names_it() -> None:
    with pytest.raises(ConfigError) as caught:
        _render(NO_STOP)
    message = str(caught.value)
    assert "line 1: the chat template ends the answer with" in message
    assert "stop tokens: '<|im_end|>' (2)" in message
    assert "never stops by itself" in message and "training.eos_token" in message


def test_a_template_that_stops_with_another_token_is_an_error_unless_it_is_named() -> None:
    with pytest.raises(ConfigError, match="without a stop token of the model"):
        _render(OTHER_STOP)
    tokenizer, rendered = _render(OTHER_STOP, extra_stop=True)
    assert tokenizer.decode(rendered[0].input_ids).endswith("Ho<|im_start|>")


def test_a_template_whose_prompt_is_not_a_prefix_is_an_error() -> None:
    with pytest.raises(ConfigError, match="renders the prompt differently once an answer follows"):
        _render(NO_PREFIX)


def test_a_stop_token_inside_an_answer_is_an_error() -> None:
    row = _row("Hi", "One<|im_end|>two", 7)
    with pytest.raises(DataError, match="line 7: the answer holds the stop token") as caught:
        _render(CHATML, [row])
    assert "two" in caught.value.message


def test_a_template_that_refuses_a_row_is_an_error() -> None:
    with pytest.raises(DataError, match="line 1: the chat template refuses the row: roles must"):
        _render(REFUSING)


def test_long_rows_are_counted_and_the_needed_length_is_named() -> None:
    _, rendered = _render(CHATML)
    lengths = [len(row.input_ids) for row in rendered]
    assert lengths[1] > lengths[0]
    _render(CHATML, max_length=lengths[1])
    with pytest.raises(DataError) as caught:
        _render(CHATML, max_length=lengths[1] - 1)
    assert f"1 of 2 rows are longer than max_length={lengths[1] - 1}" in caught.value.message
    assert f"the longest, line 2, has {lengths[1]}" in caught.value.message
    assert caught.value.hint is not None
    assert f"training.max_length: {lengths[1]}" in caught.value.hint


def test_a_missing_chat_template_is_an_error() -> None:
    said = "base model tiny: its tokenizer has no chat template"
    with pytest.raises(ArtifactError, match=said) as caught:
        require_chat_template(make_tokenizer(None), "tiny")
    assert caught.value.exit_code == 3, "as where the finished model has none"


def test_stop_tokens_are_those_of_every_source(tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    end = tokenizer.eos_token_id
    assert served_stop_ids(tmp_path, tokenizer) == [end]
    (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": 7}))
    assert served_stop_ids(tmp_path, tokenizer) == sorted([end, 7])
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [9, 8]}))
    assert served_stop_ids(tmp_path, tokenizer) == sorted([end, 8, 9])
    start = tokenizer.convert_tokens_to_ids("<|im_start|>")
    assert start in served_stop_ids(tmp_path, tokenizer, "<|im_start|>")
    with pytest.raises(ConfigError, match="'<stop>' is not a token of the vocabulary"):
        served_stop_ids(tmp_path, tokenizer, "<stop>")
