"""Each held-out row's value of a metric, and the paired comparison of two models by them."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tuneline.core.artifact import open_artifact
from tuneline.core.config import StrictModel
from tuneline.core.documents import parse_json
from tuneline.core.errors import ArtifactError
from tuneline.core.release import ROWS_FILE
from tuneline.core.statistics import (
    MIN_ROWS,
    Z_95,
    are_shares,
    bootstrap_interval,
    count_pairs,
    paired_share_interval,
)

PREDICTIONS_FILE = "predictions.jsonl"
SCORES_FILE = "evaluation.json"
MIN_RESAMPLED_ROWS = 20
"""Fewer rows have no bootstrap interval: their resamples repeat a handful of values, and those of
one row have no width at all."""


class Rows(StrictModel):
    """The values of one metric, by row. A row's key is a hash, so the file does not have its text.

    A release holds the file so that a later release can be compared with it row by row.
    """

    metric: str
    higher_is_better: bool
    evaluation: str
    """Digest of the evaluation."""
    values: dict[str, float]


@dataclass(frozen=True)
class Compared:
    """The second model minus the first, over the rows that both answered."""

    num_rows: int
    first: float
    second: float
    low: float
    high: float
    """Interval of the difference at 95 %; positive is better. Infinite for too few rows."""
    are_shares: bool = True
    """Whether every value is 0 or 1."""
    room: float = math.inf
    """The largest drop that the values of the first model allow."""

    @property
    def observed(self) -> str:
        return (
            f"{self.first:.4g} → {self.second:.4g}, gain {self.low:+.3g} to {self.high:+.3g} "
            f"(95 %), {self.num_rows} rows"
        )

    @property
    def reason(self) -> str:
        """Return the name of a drop that is not ruled out: measured, or hidden by the noise."""
        return "worse" if self.high < 0 else "not-ruled-out"

    def rules_out(self, max_drop: float) -> bool:
        """Return whether a drop of more than `max_drop` is ruled out at 95 %.

        Right answers that are fewer than that cannot drop so far, which rules nothing out.
        """
        return self.room > max_drop and self.low >= -max_drop

    def rows_needed(self, max_drop: float) -> int | None:
        """Return how many rows a comparison needs before it can rule out a drop at all.

        With fewer rows, equal answers to every row do not narrow the interval enough. For values
        of 0 and 1 it is the number at which Wilson's interval of n right answers of n is as wide as
        `max_drop`: z²/(n + z²). None if these rows are enough, or if no number is.
        """
        if not self.are_shares:
            return MIN_RESAMPLED_ROWS if self.num_rows < MIN_RESAMPLED_ROWS else None
        if max_drop <= 0:
            return None
        needed = math.ceil(Z_95**2 * (1 - max_drop) / max_drop)
        return needed if self.num_rows < needed else None

    def inconclusive(self, max_drop: float) -> str:
        """Return why the comparison decides nothing; empty if it does."""
        if self.room <= max_drop:
            return (
                f"INCONCLUSIVE: from {self.first:.4g}, a drop of more than {max_drop:g} is not "
                "possible, so that this metric cannot show it"
                + ("; rouge_l can" if self.are_shares else "; lower release.max_regression")
            )
        needed = self.rows_needed(max_drop)
        if self.rules_out(max_drop) or self.high < 0 or needed is None:
            return ""
        return (
            f"INCONCLUSIVE: {self.num_rows} rows cannot rule out a drop of {max_drop:g}, even if "
            f"every answer is equal; at least {needed} rows are needed"
        )


def read_rows(evaluation: Path, metric: str) -> Rows:
    """Return the values of an evaluation artifact; a metric that it lacks has no rows."""
    scores = parse_json((evaluation / SCORES_FILE).read_text(encoding="utf-8"))
    values = {
        _key(prediction): float(value)
        for prediction in read_lines(evaluation / PREDICTIONS_FILE)
        if (value := prediction.get("scores", {}).get(metric)) is not None
    }
    found = scores["metrics"].get(metric, {})
    return Rows(
        metric=metric,
        higher_is_better=found.get("higher_is_better", True),
        evaluation=open_artifact(evaluation).digest,
        values=values,
    )


def read_released_rows(release: Path) -> Rows | None:
    """Return the rows that a release holds; None if its line has no right answers.

    Raises:
        ArtifactError: The file does not hold rows.
    """
    path = release / ROWS_FILE
    if not path.is_file():
        return None
    try:
        return Rows.model_validate(parse_json(path.read_text("utf-8")))
    except (ValueError, RecursionError):
        raise ArtifactError(f"{path}: does not hold the values of held-out rows") from None


def compare_rows(first: Rows, second: Rows) -> Compared | None:
    """Return the paired comparison over the common rows; None without a common row.

    The interval is Newcombe's for values that are all 0 or 1, and bootstrapped for others. It is
    infinite for fewer than MIN_ROWS values of 0 and 1, or MIN_RESAMPLED_ROWS others.
    """
    common = sorted(first.values.keys() & second.values.keys())
    if not common or first.metric != second.metric:
        return None
    sign = 1 if second.higher_is_better else -1
    old, new = ([rows.values[key] for key in common] for rows in (first, second))
    low, high = _interval(old, new)
    if sign < 0:
        low, high = -high, -low
    mean_old, mean_new = (sum(values) / len(common) for values in (old, new))
    shares = are_shares([*old, *new])
    room = math.inf
    if sign > 0 and first.metric != "python":  # no such metric has a value below 0
        room = mean_old
    elif shares:
        room = mean_old if sign > 0 else 1 - mean_old
    return Compared(len(common), mean_old, mean_new, low, high, shares, room)


def find_lost_rows(first: Rows, second: Rows, max_drop: float) -> str:
    """Return why too many rows of the first model have no value of the second; empty if not.

    Rows that are gone could hide a drop as large as their share.
    """
    common, total = len(first.values.keys() & second.values.keys()), len(first.values)
    if common and total - common <= max_drop * total:
        return ""
    return f"the {total - common} that are gone could hide a drop of more than {max_drop:g}"


def mean_value(evaluation: Path, metric: str) -> float | None:
    """Return the mean of a metric over the predictions of an evaluation that have a value."""
    found = (one.get("scores", {}).get(metric) for one in read_lines(evaluation / PREDICTIONS_FILE))
    values = [float(value) for value in found if value is not None]
    return sum(values) / len(values) if values else None


def compare_in_order(first: Path, second: Path, metric: str) -> Compared | None:
    """Return the paired comparison of two evaluations of the same rows, from their predictions.

    A positive difference is better. The result is None without a common value, or if the rows are
    not the same in the same order.
    """
    old, new = (read_lines(evaluation / PREDICTIONS_FILE) for evaluation in (first, second))
    if [_key(one) for one in old] != [_key(one) for one in new]:
        return None
    pairs = [
        (float(a), float(b))
        for one, other in zip(old, new, strict=True)
        if (a := one.get("scores", {}).get(metric)) is not None
        and (b := other.get("scores", {}).get(metric)) is not None
    ]
    if not pairs:
        return None
    before, after = ([pair[side] for pair in pairs] for side in (0, 1))
    low, high = _interval(before, after)
    if not read_rows(second, metric).higher_is_better:
        low, high = -high, -low
    num_rows = len(pairs)
    means = sum(before) / num_rows, sum(after) / num_rows
    return Compared(num_rows, *means, low, high, are_shares([*before, *after]))


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Return the JSON documents of a file with one in each line."""
    text = path.read_text(encoding="utf-8")
    return [parse_json(line) for line in text.removesuffix("\n").split("\n") if line]


def _interval(old: Sequence[float], new: Sequence[float]) -> tuple[float, float]:
    if are_shares([*old, *new]):
        if len(old) < MIN_ROWS:
            return -math.inf, math.inf
        return paired_share_interval(count_pairs(*([bool(v) for v in side] for side in (old, new))))
    if len(old) < MIN_RESAMPLED_ROWS:
        return -math.inf, math.inf
    return bootstrap_interval([b - a for a, b in zip(old, new, strict=True)])


def _key(prediction: dict[str, Any]) -> str:
    asked = json.dumps([prediction["prompt"], prediction["expected"]], sort_keys=True)
    return hashlib.sha256(asked.encode()).hexdigest()
