"""Scores of answers, by every chosen metric."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from training.config import EvaluationConfig
from training.data.row import Row
from training.evaluation.kept import Kept
from training.evaluation.metrics.judge import ask_judge_once, score_judge
from training.evaluation.metrics.metric import Metric, Scored
from training.evaluation.metrics.table import METRICS, choose_metrics
from training.evaluation.prediction import Prediction, expected_tool_calls, predict
from tuneline.core.config import StrictModel
from tuneline.core.statistics import mean_interval, wilson_interval


class MetricResult(StrictModel):
    """One metric over all rows that it applies to."""

    title: str
    value: float | None
    """The mean over `num_rows` rows; null without a row."""
    interval: tuple[float, float] | None
    """At 95 %: Wilson's if every value is 0 or 1, bootstrapped for other means."""
    num_rows: int
    higher_is_better: bool
    details: dict[str, Any]
    note: str
    """Why values are absent."""


class Scores(StrictModel):
    """The scores of a set of predictions."""

    num_rows: int
    num_correct: int
    exact_match: float
    """Share of answers that are equal as a whole."""
    exact_match_interval: tuple[float, float]
    """Wilson score interval of `exact_match` at 95 %."""
    field_accuracy: dict[str, float]
    """For each field, the share of rows expecting it whose answer has it with the same value."""
    stopped: float
    """Share of answers that the model ended by itself."""
    metrics: dict[str, MetricResult]
    """The metrics by name, exact match among them."""


def try_metrics(config: EvaluationConfig, rows: Sequence[Row]) -> None:
    """Check that every metric can be computed, before a model answers: score expected answers.

    A metric of the user's own sees the first row only, and the judge gets one request.

    Raises:
        ServerError: The judge does not answer.
        ConfigError, DataError: A metric does not fit the configuration or the expected answers.
        MissingError: The package of a metric is not installed.
    """
    right = [predict(row, row.answer, "stop", expected_tool_calls(row)) for row in rows]
    num_rows = {"python": 1, "chrf": 1, "rouge_l": 1, "json_schema": 1}
    for name in choose_metrics(config, [row.answer for row in rows]):
        if name == "judge":
            ask_judge_once(config)
        else:
            METRICS[name].score(right[: num_rows.get(name)], config)


def score(
    predictions: Sequence[Prediction],
    config: EvaluationConfig,
    *,
    no_losses: str = "",
    kept: Kept | None = None,
) -> tuple[list[Prediction], Scores]:
    """Return the predictions with each row's values, and the scores.

    Args:
        no_losses: Why the predictions have no losses, as the note of metrics that read them.
        kept: The answers that a judge has given before.

    Raises:
        ValueError: There are no predictions.
        ConfigError, DataError: A metric does not fit the configuration or the expected answers.
    """
    if not predictions:
        raise ValueError("no predictions to score")
    results: dict[str, MetricResult] = {}
    values: list[dict[str, float | None]] = [{} for _ in predictions]
    for name in choose_metrics(config, [prediction.expected for prediction in predictions]):
        metric = METRICS[name]
        if name == "judge":
            scored = score_judge(predictions, config, kept)
        else:
            scored = metric.score(predictions, config)
        for row, value in zip(values, scored.values, strict=True):
            row[name] = value
        note = scored.note or (no_losses if metric.needs_losses else "")
        results[name] = _result(metric, scored, note)
    num_correct = sum(prediction.correct for prediction in predictions)
    fields = results["fields"].details if "fields" in results else {}
    scores = Scores(
        num_rows=len(predictions),
        num_correct=num_correct,
        exact_match=num_correct / len(predictions),
        exact_match_interval=wilson_interval(num_correct / len(predictions), len(predictions)),
        field_accuracy={name: rates["recall"] for name, rates in fields.items()},
        stopped=sum(p.finish_reason == "stop" for p in predictions) / len(predictions),
        metrics=results,
    )
    scored_rows = [
        prediction.model_copy(update={"scores": row})
        for prediction, row in zip(predictions, values, strict=True)
    ]
    return scored_rows, scores


def _result(metric: Metric, scored: Scored, note: str) -> MetricResult:
    values = [value for value in scored.values if value is not None]
    mean = sum(values) / len(values) if values else None
    interval = None
    if mean is not None:
        interval = mean_interval(values)
    return MetricResult(
        title=metric.title,
        value=mean,
        interval=interval,
        num_rows=len(values),
        higher_is_better=metric.higher_is_better,
        details=scored.details,
        note=note,
    )
