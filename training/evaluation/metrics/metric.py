"""The row of a metric in the table, and the result of a metric."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from training.config import EvaluationConfig
from training.evaluation.prediction import Prediction

Expected = Sequence[str]
"""The expected answers of all rows."""


@dataclass(frozen=True)
class Scored:
    """The result of one metric.

    Attributes:
        values: One value per row, in order; None for a row that the metric does not apply to.
        details: Figures that are not means over rows, as JSON.
        note: Why values are absent, for people.
    """

    values: list[float | None]
    details: dict[str, Any] = field(default_factory=dict)
    note: str = ""


@dataclass(frozen=True)
class Metric:
    """One row of the table of metrics.

    Attributes:
        score: Scores the answers of all rows.
        is_default: Whether it is computed if `evaluation.metrics` is not given.
        title: Its name in tables.
        higher_is_better: Whether a higher value is a better answer.
        needs_losses: Whether it reads the expected answers' log-probabilities.
    """

    score: Callable[[Sequence[Prediction], EvaluationConfig], Scored]
    is_default: Callable[[Expected, EvaluationConfig], bool]
    title: str
    higher_is_better: bool = True
    needs_losses: bool = False
