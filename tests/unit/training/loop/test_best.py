"""The best checkpoint, and the end of a run whose held-out figure stays worse."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from training.config import TrainingConfig
from training.loop.best import KeepBest, is_better, require_metric
from training.methods import find_method
from tuneline.core.config import validate_config
from tuneline.core.errors import ConfigError


def _config(**settings: Any) -> TrainingConfig:
    return TrainingConfig.model_validate({"load_best_model_at_end": True, **settings})


def _play(config: TrainingConfig, figures: list[float], start: Any = None) -> tuple[Any, list[int]]:
    """Hand over one figure per step from step 1 on, until the run is told to stop.

    Returns:
        The state, and the steps of which a checkpoint is saved.
    """
    state = start or SimpleNamespace(
        global_step=0, best_metric=None, best_global_step=None, log_history=[]
    )
    best, saved = KeepBest(config), []
    name = config.metric_for_best_model
    for figure in figures:
        state.global_step += 1
        control = SimpleNamespace(should_save=True, should_training_stop=False)
        state.log_history.append({"step": state.global_step, name: figure})
        best.on_evaluate(None, state, control, metrics={name: figure})
        if control.should_save:
            saved.append(state.global_step)
        if control.should_training_stop:
            break
    return state, saved


def test_the_lowest_loss_is_best_and_patience_counts_from_it() -> None:
    state, saved = _play(_config(early_stopping_patience=2), [3.0, 2.0, 2.5, 2.1, 1.0])
    assert (state.best_global_step, state.best_metric, state.global_step) == (2, 2.0, 4)
    # A checkpoint of the last step would go on training where the run ends.
    assert saved == [1, 2, 3]


def test_a_higher_share_of_right_answers_is_better() -> None:
    config = _config(metric_for_best_model="eval_exact_match")
    state, _ = _play(config, [0.5, 0.75, 0.75, 0.25])
    assert (state.best_global_step, state.global_step) == (2, 4)


def test_a_continued_run_counts_on() -> None:
    config = _config(early_stopping_patience=3)
    state, _ = _play(config, [2.0, 3.0, 3.0])
    state, _ = _play(config, [3.0, 3.0], start=state)
    assert state.global_step == 4


@pytest.mark.parametrize(
    ("value", "best", "expected"),
    [(1.0, None, True), (0.95, 1.0, False), (0.85, 1.0, True), (1.5, 1.0, False)],
)
def test_a_gain_below_the_threshold_is_no_gain(
    value: float, best: float | None, expected: bool
) -> None:
    assert is_better(_config(early_stopping_threshold=0.1), value, best) is expected


def test_patience_without_the_best_checkpoint_is_refused() -> None:
    with pytest.raises(ConfigError, match="set load_best_model_at_end: true") as caught:
        validate_config(TrainingConfig, {"early_stopping_patience": 2}, "run.yaml")
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("method", "metric", "known"),
    [
        ("sft", "eval_accuracy", "expected eval_loss or eval_exact_match"),
        ("kto", "eval_kl", "expected eval_loss or eval_rewards/margins"),
        ("grpo", "eval_reward_std", "expected eval_loss or eval_reward"),
        ("grpo", "eval_completions/mean_length", "expected eval_loss or eval_reward"),
        ("dpo", "eval_exact_match", "eval_loss or eval_rewards/margins or eval_rewards/accuracies"),
    ],
)
def test_a_metric_that_cannot_choose_a_checkpoint_is_refused(
    method: str, metric: str, known: str
) -> None:
    needed = {"reward_funcs": "rewards.py:lower"} if method == "grpo" else {}
    config = _config(method={"type": method, **needed}, metric_for_best_model=metric)
    with pytest.raises(ConfigError, match=f"metric_for_best_model: {metric} is not") as caught:
        require_metric(config, find_method(config.method))
    assert known in str(caught.value)
