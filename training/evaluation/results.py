"""The files of an evaluation: predictions and scores."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from training.config import EvaluationConfig
from training.evaluation.scoring import Prediction, score


def write_results(
    folder: Path,
    metrics: dict[str, Any],
    predictions: Sequence[Prediction],
    config: EvaluationConfig,
    wall_s: float,
) -> None:
    """Score predictions, write both files and add the scores to the metrics."""
    scores = score(predictions, config.fields)
    lines = (prediction.model_dump_json() + "\n" for prediction in predictions)
    (folder / "predictions.jsonl").write_text("".join(lines), encoding="utf-8")
    (folder / "evaluation.json").write_text(
        scores.model_dump_json(indent=2) + "\n", encoding="utf-8"
    )
    metrics.update({**scores.model_dump(mode="json"), "wall_s": wall_s})
