"""ROUGE-L: the longest common subsequence of tokens, for any language.

C.-Y. Lin, ROUGE: a package for automatic evaluation of summaries (2004). The tokens are those of
`answer_text.text_tokens`: the rouge-score package drops every character outside a-z and 0-9.
"""

from __future__ import annotations

from collections.abc import Sequence

from training.config import EvaluationConfig
from training.evaluation.answer_text import text_tokens
from training.evaluation.metrics.metric import Scored
from training.evaluation.prediction import Prediction
from tuneline.core.messages import bare_answer


def score_rouge_l(predictions: Sequence[Prediction], _config: EvaluationConfig) -> Scored:
    """Return the F1 of ROUGE-L of each answer, from 0 to 1; None if only calls are expected."""
    return Scored([rouge_l(p.expected, p.answer) if p.expects_text else None for p in predictions])


def rouge_l(expected: str, answer: str) -> float:
    """Return the F1 of ROUGE-L; two texts without tokens are equal."""
    first, second = text_tokens(bare_answer(expected)), text_tokens(bare_answer(answer))
    if not first and not second:
        return 1.0
    return 2 * common_length(first, second) / (len(first) + len(second))


def common_length(first: Sequence[str], second: Sequence[str]) -> int:
    """Return the length of the longest common subsequence.

    M. Crochemore et al., A fast and practical bit-vector algorithm for the longest common
    subsequence problem (2001): one whole number holds a row of the table.
    """
    places: dict[str, int] = {}
    for index, token in enumerate(first):
        places[token] = places.get(token, 0) | 1 << index
    ones = (1 << len(first)) - 1
    row = ones
    for token in second:
        matches = row & places.get(token, 0)
        row = ((row + matches) | (row - matches)) & ones
    return len(first) - row.bit_count()
