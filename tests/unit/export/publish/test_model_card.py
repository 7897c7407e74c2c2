"""The keys of a training in the model card."""

from __future__ import annotations

import pytest

from export.publish.model_card import training_keys


@pytest.mark.parametrize("finetuning_type", ["lora", "full"])
@pytest.mark.parametrize(
    ("max_steps", "shown", "left_out"),
    [(None, "num_train_epochs", "max_steps"), (20, "max_steps", "num_train_epochs")],
)
def test_steps_or_epochs_are_shown_and_never_both(
    finetuning_type: str, max_steps: int | None, shown: str, left_out: str
) -> None:
    keys = training_keys({"finetuning_type": finetuning_type, "max_steps": max_steps})
    assert shown in keys and left_out not in keys
    assert {"learning_rate", "max_length", "seed"} < set(keys)


def test_a_card_names_a_4_bit_base_and_dora_only_if_they_were_trained() -> None:
    keys = training_keys({"load_in_4bit": True, "use_dora": True, "use_rslora": False})
    assert keys[-2:] == ["load_in_4bit", "use_dora"]
    assert not {"load_in_4bit", "use_dora", "use_rslora"} & set(training_keys({}))
