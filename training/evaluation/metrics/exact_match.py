"""Exact match: the whole answer is right."""

from __future__ import annotations

from collections.abc import Sequence

from training.config import EvaluationConfig
from training.evaluation.metrics.metric import Scored
from training.evaluation.prediction import Prediction


def score_exact_match(predictions: Sequence[Prediction], _config: EvaluationConfig) -> Scored:
    """Return 1 for each answer that equals the expected one."""
    return Scored([float(prediction.correct) for prediction in predictions])
