from __future__ import annotations

import json
import subprocess
import sys

import pytest

from training.config import DataConfig, EvaluationConfig, ReferenceConfig, TrainingConfig
from tuneline.core.config import StrictModel, validate_config
from tuneline.core.errors import ConfigError


def test_neither_split_option_resolves_to_a_tenth() -> None:
    assert DataConfig(path="rows.jsonl").heldout_fraction == 0.1


def test_a_heldout_file_leaves_no_fraction() -> None:
    assert DataConfig(path="a", heldout_path="b").heldout_fraction is None


def test_both_split_options_are_refused() -> None:
    with pytest.raises(ConfigError, match="not both"):
        validate_config(
            DataConfig, {"path": "a", "heldout_path": "b", "heldout_fraction": 0.2}, "run.yaml"
        )


def test_recorded_settings_hold_no_path() -> None:
    recorded = DataConfig(path="/data/a.jsonl", heldout_path="/data/b.jsonl").recorded()
    assert recorded["seed"] == 0
    assert not [value for value in recorded.values() if "/data" in str(value)]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"lora_rank": 8}, "lora_rank: is called r here"),
        ({"max_seq_length": 512}, "is called max_length here"),
        ({"warmup_steps": 1.5}, "warmup_steps is a fraction below 1 or a whole number"),
        ({"target_modules": ["q_proj", "lm_head"]}, "remove lm_head"),
        ({"target_modules": []}, "target_modules"),
        ({"learning_rate": 0}, "learning_rate"),
        ({"r": 0}, "r: "),
        ({"lora_dropout": 1.0}, "lora_dropout"),
        ({"dtype": "float16"}, "dtype"),
        ({"learning_rat": 1e-4}, r"did you mean learning_rate\?"),
    ],
)
def test_unusable_training_values_are_named(values: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        validate_config(TrainingConfig, values, "run.yaml")


@pytest.mark.parametrize("model", [TrainingConfig, EvaluationConfig, ReferenceConfig])
def test_a_dump_of_the_defaults_is_read_back(model: type[StrictModel]) -> None:
    dumped = json.loads(json.dumps(model().model_dump(mode="json")))
    assert model.model_validate(dumped) == model()


def test_configuration_imports_no_heavy_library() -> None:
    code = (
        "import sys, training, training.config, training.methods, "
        "training.evaluation.endpoint, training.evaluation.scoring\n"
        "heavy = ['torch', 'transformers', 'openai', 'datasets']\n"
        "print([name for name in [*heavy, 'numpy'] if name in sys.modules])\n"
        "import training.data.prepare  # the checks of the rows compute with numpy\n"
        "print([name for name in heavy if name in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.split() == ["[]", "[]"]
