"""Compare two evaluations row by row, with intervals of the paired differences."""

from __future__ import annotations

from collections.abc import Sequence

from training.evaluation.metrics.table import METRICS
from training.evaluation.prediction import Prediction
from tuneline.core.config import StrictModel
from tuneline.core.errors import ArtifactError
from tuneline.core.statistics import (
    MIN_ROWS,
    are_shares,
    bootstrap_interval,
    count_pairs,
    mcnemar_p,
    paired_share_interval,
)


class MetricComparison(StrictModel):
    """One metric of two models on the same rows."""

    title: str
    base: float
    tuned: float
    difference: float
    """`tuned` minus `base`."""
    interval: tuple[float, float]
    """Of the difference, at 95 %: Newcombe's if every value is 0 or 1 (a share), bootstrapped over
    rows for other means."""
    num_rows: int
    """Rows that have a value of both models."""
    base_only: int | None = None
    """Of a share, rows that only the base answers correctly."""
    tuned_only: int | None = None
    mcnemar_p: float | None = None
    """Of a share, the exact two-sided p-value of McNemar's test."""
    better: str
    """`base` or `tuned` if the interval excludes zero, else `neither`. Fewer than six rows show
    nothing."""


class Comparison(StrictModel):
    """Base and tuned model on the same rows."""

    num_rows: int
    metrics: dict[str, MetricComparison]


def compare_predictions(base: Sequence[Prediction], tuned: Sequence[Prediction]) -> Comparison:
    """Return the comparison by every metric that both have.

    Raises:
        ArtifactError: The two are not about the same rows.
    """
    same = [(a.prompt, a.expected) for a in base] == [(b.prompt, b.expected) for b in tuned]
    if not same or not base:
        raise ArtifactError(
            f"the two evaluations are about different rows ({len(base)} and {len(tuned)}); "
            "expected the same rows in the same order",
            hint="Evaluate both models on one file with equal evaluation.num_rows.",
        )
    names = [name for name in METRICS if name in base[0].scores and name in tuned[0].scores]
    found: dict[str, MetricComparison] = {}
    for name in names:
        metric = METRICS[name]
        pairs = [
            (first, second)
            for a, b in zip(base, tuned, strict=True)
            if (first := a.scores[name]) is not None and (second := b.scores[name]) is not None
        ]
        if pairs:
            found[name] = compare_pairs(pairs, metric.title, metric.higher_is_better)
    return Comparison(num_rows=len(base), metrics=found)


def compare_pairs(
    pairs: Sequence[tuple[float, float]], title: str, higher_is_better: bool = True
) -> MetricComparison:
    """Return the comparison of pairs of values, of the base and the tuned model.

    Raises:
        ValueError: There are no pairs.
    """
    num_rows = len(pairs)
    base, tuned = (sum(values) / num_rows for values in zip(*pairs, strict=True))
    exact: dict[str, float | int] = {}
    if are_shares(value for pair in pairs for value in pair):
        counts = count_pairs([bool(a) for a, _ in pairs], [bool(b) for _, b in pairs])
        low, high = paired_share_interval(counts)
        exact = {
            "base_only": counts.first_only,
            "tuned_only": counts.second_only,
            "mcnemar_p": mcnemar_p(counts.first_only, counts.second_only),
        }
    else:
        low, high = bootstrap_interval([b - a for a, b in pairs])
    up, down = ("tuned", "base") if higher_is_better else ("base", "tuned")
    is_shown = num_rows >= MIN_ROWS
    return MetricComparison(
        title=title,
        base=base,
        tuned=tuned,
        difference=tuned - base,
        interval=(low, high),
        num_rows=num_rows,
        better=up if is_shown and low > 0 else down if is_shown and high < 0 else "neither",
        **exact,  # type: ignore[arg-type]  # values of the three fields
    )
