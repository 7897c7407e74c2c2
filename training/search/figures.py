"""The figures that a stage's artifact will have, told before anything trains."""

from __future__ import annotations

from collections.abc import Sequence

from training.config import EvaluationConfig, TrainingConfig
from training.evaluation.metrics.table import choose_metrics
from training.evaluation.report.comparison import MetricComparison
from training.evaluation.scoring import Scores
from training.methods import find_method

OF_TRAINING = (
    "num_steps", "num_steps_resumed", "num_train_rows", "saved_token_share",
    "num_trainable_parameters", "num_trained_tokens", "trained_tokens_per_s", "wall_s",
    "peak_memory_bytes", "training_memory_bytes", "estimated_training_memory_bytes",
)  # fmt: skip
OF_PAIRS = ("num_pairs", "accuracy", "margin")
OF_IMPLICIT_REWARDS = (*OF_PAIRS, "likelier", "likelier_base", "likelier_p")
OF_REWARDS = ("num_rows", "reward", "reward_base", "reward_difference")
OF_JUDGE = ("judge.win_rate", "judge.wins", "judge.ties", "judge.losses")


def training_figures(config: TrainingConfig) -> list[str]:
    """Return the numbers in the manifest of a training."""
    names = [*find_method(config.method).metrics([]), *OF_TRAINING]
    if config.load_best_model_at_end:
        names += ["best_step", f"best_{config.metric_for_best_model}"]
    return [*names, "four_bit_share"] if config.load_in_4bit else names


def evaluation_figures(config: EvaluationConfig, answers: Sequence[str]) -> list[str]:
    """Return the numbers in the manifest of an evaluation, as patterns of fnmatch.

    Args:
        answers: The expected answers, which choose the metrics if the configuration does not.
    """
    chosen = choose_metrics(config, answers)
    names = [
        name for name, field in Scores.model_fields.items() if field.annotation in (int, float)
    ]
    names += ["field_accuracy.*"] if "fields" in chosen else []
    names += [f"metrics.{name}.{of}" for name in chosen for of in ("value", "num_rows")]
    return [*names, "wall_s"]


def comparison_figures(config: EvaluationConfig, answers: Sequence[str]) -> list[str]:
    """Return the numbers in the manifest of a comparison of two evaluations."""
    numbers = [
        name for name, field in MetricComparison.model_fields.items()
        if field.annotation in (int, float, int | None, float | None)
    ]  # fmt: skip
    chosen = choose_metrics(config, answers)
    names = ["num_rows", *(f"metrics.{name}.{of}" for name in chosen for of in numbers)]
    return [*names, *OF_JUDGE] if config.judge is not None else names


def preference_figures(config: EvaluationConfig, training: TrainingConfig) -> list[str]:
    """Return the numbers in the manifest of an evaluation of preferences."""
    known = {"grpo": OF_REWARDS, "reward": OF_PAIRS}
    names = [*known.get(training.method.type, OF_IMPLICIT_REWARDS)]
    asks = config.judge is not None and not training.method.has_expected_answers
    return [*names, *OF_JUDGE] if asks else names
