from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

import pytest

from training.config import DataConfig
from training.data.prepare import prepare_dataset
from training.data.template_settings import SETTINGS_FILE
from tuneline.core.config import validate_config
from tuneline.core.errors import ConfigError

OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "off": {"chat_template_kwargs": {"thinking": False}},
    "on": {"chat_template_kwargs": {"thinking": True}},
    "dated": {"chat_template_date": datetime.date(2026, 11, 28)},
}


def test_other_settings_of_a_template_make_another_dataset(tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(f'{{"prompt": "a{i}", "completion": "b"}}\n' for i in range(4)))
    digests = {
        prepare_dataset(
            DataConfig(path="rows.jsonl", **options), relative_to=tmp_path, out=tmp_path / name
        ).digest
        for name, options in OPTIONS.items()
    }
    assert len(digests) == len(OPTIONS) == 4
    assert not (tmp_path / "plain" / SETTINGS_FILE).exists()


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"enable-thinking": False}, "'enable-thinking' is not the name of a variable"),
        ({"messages": []}, "messages is not a variable that a run can set"),
    ],
)
def test_a_variable_that_no_template_can_have_is_refused(
    kwargs: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        validate_config(DataConfig, {"path": "a", "chat_template_kwargs": kwargs}, "run.yaml")
