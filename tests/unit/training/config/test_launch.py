"""`training.launch`: what several processes cannot train is refused with the nearest recipe."""

from __future__ import annotations

from typing import Any

import pytest

from training.config import TrainingConfig
from training.config.launch import launch_line
from tuneline.core.config import keyed_values, validate_config
from tuneline.core.errors import ConfigError

FSDP2 = {"processes": 2, "strategy": "fsdp2"}


@pytest.mark.parametrize(
    ("values", "problem", "recipe"),
    [
        (
            {"launch": {"processes": 4}},
            "4 processes do not divide gradient_accumulation_steps 2",
            "per_device_train_batch_size: 4, gradient_accumulation_steps: 4, the same 16 rows",
        ),
        (
            {"launch": {"processes": 3}},
            "3 processes do not divide gradient_accumulation_steps 2",
            "gradient_accumulation_steps: 3, a step of 24 rows",
        ),
        (
            {"launch": {"processes": 2}, "method": {"type": "grpo", "reward_funcs": "r.py:f"}},
            "grpo trains in one process",
            "Remove launch",
        ),
        (
            {"launch": {"processes": 2}, "method": {"type": "kto"}},
            "kto trains in one process: its KL term",
            "Remove launch",
        ),
        ({"launch": FSDP2, "method": {"type": "dpo"}}, "fsdp2 trains with sft", "strategy: ddp"),
        ({"launch": FSDP2, "load_in_4bit": True}, "blocks of NF4", "strategy: ddp"),
        ({"launch": FSDP2, "use_dora": True}, "use_dora", "strategy: ddp"),
        ({"launch": FSDP2, "optim": "adamw_8bit"}, "optim: adamw_8bit", "adamw_torch_fused"),
        (
            {
                "launch": FSDP2,
                "load_best_model_at_end": True,
                "metric_for_best_model": "eval_exact_match",
            },
            "answers no prompts while it trains",
            "strategy: ddp",
        ),
        (
            {"launch": {"processes": 2, "strategy": "zero3"}},
            "zero3 is not supported: DeepSpeed hides the gradients",
            "strategy: fsdp2",
        ),
        (
            {"launch": {"processes": 2, "strategy": "ZeRO-2"}},
            "ZeRO-2 is not supported",
            "reshard_after_forward: false",
        ),
        ({"launch": {"processes": 1, "nodes": 2, "rendezvous": "host"}}, "'host'", "host:port"),
        ({"launch": {"processes": 0}}, "greater than 0", "found 0"),
        ({"launch": {"strategy": "ddp"}}, "launch.processes", "required"),
    ],
)
def test_a_launch_that_cannot_work_is_refused(
    values: dict[str, Any], problem: str, recipe: str
) -> None:
    with pytest.raises(ConfigError) as error:
        validate_config(TrainingConfig, values, "run.yaml: training")
    assert problem in str(error.value)
    assert recipe in str(error.value)
    assert error.value.exit_code == 2


@pytest.mark.parametrize(
    "values",
    [
        {"launch": {"processes": 4}, "per_device_train_batch_size": 4,
         "gradient_accumulation_steps": 4},
        {"launch": {"processes": 3}, "gradient_accumulation_steps": 3},
        {"launch": FSDP2},
        {"launch": {"processes": 2}, "load_in_4bit": True, "optim": "adamw_8bit"},
        {"launch": {"processes": 2}, "method": {"type": "orpo"}},
        {"launch": {"processes": 1}, "method": {"type": "kto"}},
    ],
)  # fmt: skip
def test_the_recipes_of_the_refusals_are_accepted(values: dict[str, Any]) -> None:
    assert TrainingConfig.model_validate(values).launch is not None


def test_a_launch_does_not_change_the_key_of_a_stage() -> None:
    alone = TrainingConfig()
    together = TrainingConfig.model_validate({"launch": FSDP2})
    assert keyed_values(together) == keyed_values(alone)


def test_the_line_for_people_says_what_each_process_takes() -> None:
    config = TrainingConfig.model_validate(
        {"launch": {"processes": 2, "nodes": 2}, "gradient_accumulation_steps": 8}
    )
    assert launch_line(config) == (
        "4 processes on 2 hosts (ddp): each takes 2 of the 8 batches of 8 rows in a step"
    )
    assert launch_line(TrainingConfig()) is None
