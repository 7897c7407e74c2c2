"""Keys of the training section reach transformers' TrainingArguments by the same name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from training.config import TrainingConfig
from training.loop.arguments import trainer_arguments


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_steps", 7),
        ("adam_beta1", 0.8),
        ("adam_beta2", 0.95),
        ("adam_epsilon", 1e-6),
        ("lr_scheduler_type", "inverse_sqrt"),
        ("weight_decay", 0.1),
    ],
)
def test_a_key_keeps_its_name_and_value(tmp_path: Path, name: str, value: Any) -> None:
    from transformers import TrainingArguments

    config = TrainingConfig.model_validate({name: value})
    given = trainer_arguments(config, tmp_path, resumed=False)
    assert getattr(TrainingArguments(**given), name) == value


def test_without_max_steps_the_epochs_count(tmp_path: Path) -> None:
    assert trainer_arguments(TrainingConfig(), tmp_path, resumed=False)["max_steps"] == -1
