"""The table of metrics: one row each."""

from __future__ import annotations

from collections.abc import Sequence

from training.config import EvaluationConfig
from training.config.evaluation import MetricName
from training.evaluation.metrics.chrf import score_chrf
from training.evaluation.metrics.classes import class_targets, score_classes
from training.evaluation.metrics.exact_match import score_exact_match
from training.evaluation.metrics.fields import score_fields
from training.evaluation.metrics.json_schema import score_json_schema
from training.evaluation.metrics.judge import score_judge
from training.evaluation.metrics.metric import Expected, Metric
from training.evaluation.metrics.nats import score_nats
from training.evaluation.metrics.python_function import score_python
from training.evaluation.metrics.rouge_l import score_rouge_l


def _always(_expected: Expected, _config: EvaluationConfig) -> bool:
    return True


def _has_fields(_expected: Expected, config: EvaluationConfig) -> bool:
    return config.fields is not None


def _are_classes(expected: Expected, config: EvaluationConfig) -> bool:
    return bool(class_targets(expected, config))


def _are_free_text(expected: Expected, config: EvaluationConfig) -> bool:
    # An answer that only calls tools has no text.
    has_text = any(answer.strip() for answer in expected)
    return has_text and config.fields is None and not class_targets(expected, config)


def _are_json(_expected: Expected, config: EvaluationConfig) -> bool:
    return config.json_schema is not None or config.fields == "json"


def _has_function(_expected: Expected, config: EvaluationConfig) -> bool:
    return config.python is not None


def _has_judge(_expected: Expected, config: EvaluationConfig) -> bool:
    return config.judge is not None


METRICS: dict[MetricName, Metric] = {
    "exact_match": Metric(score_exact_match, _always, "exact match"),
    "fields": Metric(score_fields, _has_fields, "fields right"),
    "classes": Metric(score_classes, _are_classes, "classes right"),
    "chrf": Metric(score_chrf, _are_free_text, "chrF (0-100)"),
    "rouge_l": Metric(score_rouge_l, _are_free_text, "ROUGE-L F1"),
    "nats": Metric(
        score_nats, _are_free_text, "nats per answer token", higher_is_better=False,
        needs_losses=True,
    ),
    "json_schema": Metric(score_json_schema, _are_json, "valid JSON"),
    "python": Metric(score_python, _has_function, "own metric"),
    "judge": Metric(score_judge, _has_judge, "judge's win rate"),
}  # fmt: skip


def choose_metrics(config: EvaluationConfig, expected: Sequence[str]) -> list[MetricName]:
    """Return the metrics to compute, in the order of the table; exact match is always one."""
    if config.metrics is not None:
        return [name for name in METRICS if name in ("exact_match", *config.metrics)]
    return [name for name, metric in METRICS.items() if metric.is_default(expected, config)]
