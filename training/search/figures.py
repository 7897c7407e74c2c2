"""The figures that a stage's artifact will have, told before anything trains."""

from __future__ import annotations

from collections.abc import Sequence

from training.config import EvaluationConfig, TrainingConfig
from training.evaluation.forgetting.items import suite_items
from training.evaluation.forgetting.judging import ForgettingReport, SkillResult
from training.evaluation.metrics.table import choose_metrics
from training.evaluation.report.comparison import MetricComparison
from training.evaluation.scoring import Scores
from training.methods import find_method
from tuneline.core.config import StrictModel

OF_TRAINING = (
    "num_steps", "num_steps_resumed", "num_train_rows", "saved_token_share",
    "num_trainable_parameters", "num_trained_tokens", "trained_tokens_per_s", "wall_s",
    "peak_memory_bytes", "training_memory_bytes", "estimated_training_memory_bytes",
)  # fmt: skip
OF_PAIRS = ("num_pairs", "accuracy", "margin")
OF_IMPLICIT_REWARDS = (*OF_PAIRS, "likelier", "likelier_base", "likelier_p")
OF_REWARDS = ("num_rows", "reward", "reward_base", "reward_difference")
OF_JUDGE = (
    "judge.win_rate", "judge.sign_test_p", "judge.wins", "judge.losses", "judge.ties",
    "judge.swapped", "judge.unreadable", "judge.num_requests",
)  # fmt: skip
OF_4BIT = ("four_bit_share", "num_expert_parameters_not_in_4bit")


def training_figures(config: TrainingConfig) -> list[str]:
    """Return the numbers in the manifest of a training."""
    names = [*find_method(config.method).metrics([]), *OF_TRAINING]
    if config.load_best_model_at_end:
        names += ["best_step", f"best_{config.metric_for_best_model}"]
    return [*names, *OF_4BIT] if config.load_in_4bit else names


def evaluation_figures(config: EvaluationConfig, answers: Sequence[str]) -> list[str]:
    """Return the numbers in the manifest of an evaluation, as patterns of fnmatch.

    Args:
        answers: The expected answers, which choose the metrics if the configuration does not.
    """
    chosen = choose_metrics(config, answers)
    names = _numbers(Scores)
    names += ["field_accuracy.*"] if "fields" in chosen else []
    names += [f"metrics.{name}.{of}" for name in chosen for of in ("value", "num_rows")]
    return [*names, "wall_s"]


def comparison_figures(config: EvaluationConfig, answers: Sequence[str]) -> list[str]:
    """Return the numbers in the manifest of a comparison of two evaluations."""
    numbers, chosen = _numbers(MetricComparison), choose_metrics(config, answers)
    names = ["num_rows", *(f"metrics.{name}.{of}" for name in chosen for of in numbers)]
    return [*names, *OF_JUDGE] if config.judge is not None else names


def forgetting_figures() -> list[str]:
    """Return the numbers in the manifest of the forgetting suite."""
    skills = dict.fromkeys(item.skill for item in suite_items())
    of_skill = _numbers(SkillResult)
    names = [*_numbers(ForgettingReport), "wall_s"]
    return [*names, *(f"skills.{skill}.{of}" for skill in skills for of in of_skill)]


def preference_figures(config: EvaluationConfig, training: TrainingConfig) -> list[str]:
    """Return the numbers in the manifest of an evaluation of preferences."""
    known = {"grpo": OF_REWARDS, "reward": OF_PAIRS}
    names = [*known.get(training.method.type, OF_IMPLICIT_REWARDS)]
    asks = config.judge is not None and not training.method.has_expected_answers
    return [*names, *OF_JUDGE] if asks else names


def _numbers(model: type[StrictModel]) -> list[str]:
    """Return the fields of a model that are numbers, or may be."""
    numbers = (int, float, int | None, float | None)
    return [name for name, field in model.model_fields.items() if field.annotation in numbers]
