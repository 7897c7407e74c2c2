"""Keys of the training section reach transformers' TrainingArguments by the same name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from training.config import TrainingConfig
from training.loop.arguments import require_schedule, trainer_arguments
from tuneline.core.errors import ConfigError


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_steps", 7),
        ("adam_beta1", 0.8),
        ("adam_beta2", 0.95),
        ("adam_epsilon", 1e-6),
        ("lr_scheduler_type", "inverse_sqrt"),
        ("lr_scheduler_kwargs", {"timescale": 100}),
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


@pytest.mark.parametrize(
    ("schedule", "options"),
    [
        ("cosine_with_min_lr", {"min_lr_rate": 0.1}),
        ("cosine_with_restarts", {"num_cycles": 2}),
        ("warmup_stable_decay", {"num_decay_steps": 10, "decay_type": "linear"}),
        ("polynomial", {"power": 2.0, "lr_end": 0.0}),
        ("constant", {}),
    ],
)
def test_a_schedule_takes_its_options(schedule: str, options: dict[str, Any]) -> None:
    values = {"lr_scheduler_type": schedule, "lr_scheduler_kwargs": options}
    require_schedule(TrainingConfig.model_validate(values))


@pytest.mark.parametrize(
    ("schedule", "options"),
    [
        ("cosine_with_min_lr", {}),
        ("warmup_stable_decay", {}),
        ("warmup_stable_decay", {"num_decay_steps": 10, "decay_type": "steep"}),
        ("cosine", {"min_lr": 0.1}),
    ],
)
def test_options_that_a_schedule_does_not_have_are_refused(
    schedule: str, options: dict[str, Any]
) -> None:
    values = {"lr_scheduler_type": schedule, "lr_scheduler_kwargs": options}
    with pytest.raises(ConfigError, match=rf"lr_scheduler_kwargs: .* {schedule}: "):
        require_schedule(TrainingConfig.model_validate(values))
