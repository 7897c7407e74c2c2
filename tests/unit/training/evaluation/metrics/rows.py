"""Predictions made by hand."""

from __future__ import annotations

from collections.abc import Sequence

from training.data.row import Row
from training.evaluation.prediction import Prediction, predict


def made(pairs: Sequence[tuple[str, str]], prompt: str = "?") -> list[Prediction]:
    """Return predictions from pairs of an expected and a given answer."""
    return [
        predict(
            Row(
                prompt=({"role": "user", "content": prompt},),
                completion=({"role": "assistant", "content": expected},),
            ),
            answer,
            "stop",
        )
        for expected, answer in pairs
    ]
