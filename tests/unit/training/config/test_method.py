"""Options of methods: TRL's names pass, keys of the frame do not, and every option is keyed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from training.config import TrainingConfig
from training.config.method import METHODS
from tuneline.core.config import keyed_values


def _training(**method: Any) -> TrainingConfig:
    return TrainingConfig.model_validate({"method": method})


def test_an_option_of_trl_that_is_not_declared_changes_the_key() -> None:
    plain, smoothed = _training(type="dpo"), _training(type="dpo", label_smoothing=0.1)
    assert keyed_values(plain)["method"] == {"type": "dpo", "beta": 0.1, "loss_type": ["sigmoid"]}
    assert keyed_values(smoothed)["method"]["label_smoothing"] == 0.1
    assert keyed_values(smoothed) != keyed_values(plain)


def test_one_loss_may_be_written_without_a_list() -> None:
    assert _training(type="dpo", loss_type="ipo") == _training(type="dpo", loss_type=["ipo"])


LEARNING_RATES = {
    "dpo": 2e-5, "orpo": 5e-5, "kto": 2e-5, "grpo": 1e-5, "distillation": 1e-5, "reward": 1e-4,
    "embedding": 1e-4,
    "reranker": 1e-4,
}  # fmt: skip
REQUIRED = {
    "grpo": {"reward_funcs": "a.py:f"}, "distillation": {"teacher_model_name_or_path": "large"},
}  # fmt: skip


@pytest.mark.parametrize(("method", "learning_rate"), LEARNING_RATES.items())
def test_each_method_has_a_learning_rate_of_its_own(method: str, learning_rate: float) -> None:
    options = REQUIRED.get(method, {})
    assert _training(type=method, **options).learning_rate == learning_rate
    given = {"learning_rate": 0.5, "method": {"type": method, **options}}
    assert TrainingConfig.model_validate(given).learning_rate == 0.5


def test_supervised_tuning_keeps_its_learning_rate() -> None:
    assert TrainingConfig().learning_rate == 2e-4
    assert set(METHODS) == {"sft", *LEARNING_RATES}


@pytest.mark.parametrize("method", METHODS)
def test_a_row_of_the_table_has_the_options_of_its_name(method: str) -> None:
    options = REQUIRED.get(method, {})
    assert type(_training(type=method, **options).method) is METHODS[method]


@pytest.mark.parametrize(
    ("name", "instead"),
    [
        ("max_length", "set training.max_length"),
        ("learning_rate", "set training.learning_rate"),
        ("fp16", "set training.dtype"),
        ("trust_remote_code", "no code of a model folder is run"),
        ("chat_template_path", "chat_template.jinja"),
    ],
)
def test_options_that_the_frame_owns_are_refused_with_its_key(name: str, instead: str) -> None:
    with pytest.raises(ValidationError, match=f"{name} is not an option of a method: .*{instead}"):
        _training(type="dpo", **{name: 1})


def test_the_files_of_rewards_start_from_the_run_file() -> None:
    config = _training(type="grpo", reward_funcs=["a.py:f", "a.py:g", "b/c.py:h"])
    assert config.method.files() == ["a.py", "b/c.py"]
    resolved = config.method.resolved(Path("/run")).model_dump()
    assert resolved["reward_funcs"] == ["/run/a.py:f", "/run/a.py:g", "/run/b/c.py:h"]


def test_a_folder_of_a_teacher_starts_from_the_run_file(tmp_path: Path) -> None:
    (tmp_path / "large").mkdir()
    config = _training(type="distillation", teacher_model_name_or_path="large")
    resolved = config.method.resolved(tmp_path).model_dump()
    assert resolved["teacher_model_name_or_path"] == str(tmp_path / "large")
    of_hub = _training(type="distillation", teacher_model_name_or_path="org/large")
    assert of_hub.method.resolved(tmp_path) == of_hub.method


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("beta", 1.5, "less than or equal to 1"),
        ("teacher_model_init_kwargs", {}, "Tuneline loads the teacher"),
        ("max_tool_calling_iterations", 2, "no tool is called"),
    ],
)
def test_options_of_a_distillation_that_cannot_work_are_refused(
    option: str, value: Any, message: str
) -> None:
    with pytest.raises(ValidationError, match=message):
        _training(type="distillation", teacher_model_name_or_path="large", **{option: value})


def test_only_sampling_methods_add_the_tokens_of_their_answers() -> None:
    grpo = _training(type="grpo", reward_funcs="a.py:f", max_completion_length=40)
    assert grpo.method.num_sampled_tokens == 40
    distilled = _training(type="distillation", teacher_model_name_or_path="large")
    assert distilled.method.num_sampled_tokens == 256
    assert _training(type="dpo").method.num_sampled_tokens == 0
    assert TrainingConfig().method.num_sampled_tokens == 0
