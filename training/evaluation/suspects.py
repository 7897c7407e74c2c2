"""Rows that may be mislabelled, by the trained model's loss on their expected answers.

A held-out row was not trained on, so a high loss of its expected answer, if the model answers
something else, means that the rest of the data says something else. The idea is that of confident
learning (Northcutt et al., 2021), with the loss of the answer as the confidence.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from pydantic import ValidationError

from training.data.checks.personal_data import without_personal_data
from training.evaluation.evaluate import PREDICTIONS_FILE
from training.evaluation.prediction import Prediction
from tuneline.core.artifact import Artifact
from tuneline.core.errors import ConfigError, NotAnArtifactError
from tuneline.core.messages import content_of

EXCERPT_LENGTH = 80


@dataclass(frozen=True)
class Suspect:
    """A row whose expected answer the model finds unlikely.

    Attributes:
        line: The row's line in the held-out rows, from 1.
        nats_per_token: The loss of the expected answer.
        prompt, expected, answer: Excerpts without personal data.
    """

    line: int
    nats_per_token: float
    prompt: str
    expected: str
    answer: str


def find_suspects(evaluation: Artifact, num_rows: int = 20) -> list[Suspect]:
    """Return the rows that the model answers otherwise than expected, the highest loss first.

    Raises:
        ConfigError: The evaluation has no losses.
        NotAnArtifactError: A line of the predictions is not a prediction.
    """
    predictions = _read(evaluation)
    if all(prediction.nats is None for prediction in predictions):
        measured = evaluation.manifest.metrics.get("metrics") or {"exact_match": None}
        names = ",".join([*measured, "nats"])
        raise ConfigError(
            f"{evaluation.path}: has no losses of the expected answers; expected the metric nats",
            hint=f"Try: tuneline evaluate RUN.yaml --set 'evaluation.metrics=[{names}]'",
        )
    suspects = [
        Suspect(
            prediction.line or number,
            prediction.nats / prediction.num_answer_tokens,
            _excerpt(content_of(prediction.prompt[-1])),
            _excerpt(prediction.expected),
            _excerpt(prediction.answer),
        )
        for number, prediction in enumerate(predictions, start=1)
        if not prediction.correct and prediction.nats is not None and prediction.num_answer_tokens
    ]
    return sorted(suspects, key=lambda row: (-row.nats_per_token, row.line))[:num_rows]


def _read(evaluation: Artifact) -> list[Prediction]:
    path = evaluation.path / PREDICTIONS_FILE
    found = []
    lines = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    for number, line in enumerate(lines, start=1):
        try:
            found.append(Prediction.model_validate(json.loads(line)))
        except (ValueError, ValidationError):
            raise NotAnArtifactError(f"{path}: line {number}: expected a prediction") from None
    return found


def _excerpt(text: str) -> str:
    shown = " ".join(without_personal_data(text).split())
    return shown if len(shown) <= EXCERPT_LENGTH else shown[: EXCERPT_LENGTH - 1] + "…"
