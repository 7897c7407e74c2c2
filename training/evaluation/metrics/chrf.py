"""chrF: F-score of character n-grams, for any language.

M. Popović, chrF: character n-gram F-score for automatic MT evaluation, WMT (2015); sacrebleu's
implementation with its defaults (n-grams up to 6, beta 2, without white space).
"""

from __future__ import annotations

from collections.abc import Sequence

from training.config import EvaluationConfig
from training.evaluation.metrics.metric import Scored
from training.evaluation.prediction import Prediction
from tuneline.core.environment import require
from tuneline.core.messages import bare_answer


def score_chrf(predictions: Sequence[Prediction], _config: EvaluationConfig) -> Scored:
    """Return the chrF of each answer, from 0 to 100; `corpus` in the details is over all rows.

    A row that expects only tool calls has no text to compare. Two empty texts are equal, as in the
    other metrics; sacrebleu gives them 0.

    Raises:
        MissingError: sacrebleu is not installed.
    """
    chrf = require("sacrebleu.metrics", "train").CHRF()
    values: list[float | None] = [None] * len(predictions)
    answers, expected = [], []
    for index, prediction in enumerate(predictions):
        if prediction.expects_text:
            answers.append(bare_answer(prediction.answer))
            expected.append(bare_answer(prediction.expected))
            is_equal = answers[-1] == expected[-1]
            score = 100.0 if is_equal else chrf.sentence_score(answers[-1], [expected[-1]]).score
            values[index] = score
    if not answers:
        return Scored(values)
    # sacrebleu takes a list of reference sets, each with one reference per answer.
    return Scored(values, {"corpus": chrf.corpus_score(answers, [expected]).score})
