"""chrF: F-score of character n-grams, for any language.

M. Popović, chrF: character n-gram F-score for automatic MT evaluation, WMT (2015); sacrebleu's
implementation with its defaults (n-grams up to 6, beta 2, without white space).
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

from training.config import EvaluationConfig
from training.evaluation.answer_text import bare_answer
from training.evaluation.metrics.metric import Scored
from training.evaluation.prediction import Prediction
from tuneline.core.environment import require


def score_chrf(predictions: Sequence[Prediction], _config: EvaluationConfig) -> Scored:
    """Return the chrF of each answer, from 0 to 100; `corpus` in the details is over all rows.

    Raises:
        MissingError: sacrebleu is not installed.
    """
    chrf = require("sacrebleu.metrics", "train").CHRF()
    answers = [_composed(prediction.answer) for prediction in predictions]
    expected = [_composed(prediction.expected) for prediction in predictions]
    values: list[float | None] = [
        chrf.sentence_score(answer, [reference]).score
        for answer, reference in zip(answers, expected, strict=True)
    ]
    # sacrebleu takes a list of reference sets, each with one reference per answer.
    return Scored(values, {"corpus": chrf.corpus_score(answers, [expected]).score})


def _composed(text: str) -> str:
    # Korean text of macOS is decomposed: its syllables are three characters.
    return unicodedata.normalize("NFC", bare_answer(text))
