"""Questions with different answers: prompts, labels of one completion, preferences of one pair."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from training.config.checks import ContradictionsCheck
from training.data.checks.check import Check, Hit

if TYPE_CHECKING:
    from training.data.checks.whole import Whole


def compare_contradictions(whole: Whole, _config: ContradictionsCheck) -> Iterator[Hit]:
    """Return every row whose question has another answer on the same side.

    `fix` keeps the rows with the answer that most rows of the question give, duplicates included.
    """
    for is_heldout in (False, True):
        rows = whole.kept(is_heldout, kinds=("answer", "label", "preference"))
        every = np.flatnonzero((whole.votes_heldout == is_heldout) & whole.votes)
        claims = np.stack([whole.question[rows], whole.answer[rows]], axis=1)
        distinct = np.unique(claims, axis=0)
        questions, num_answers = np.unique(distinct[:, 0], return_counts=True)
        disputed = set(questions[num_answers > 1].tolist())
        if not disputed:
            continue
        votes: dict[int, dict[int, int]] = {}
        for row in every[np.isin(whole.question[every], list(disputed))].tolist():
            answers = votes.setdefault(int(whole.question[row]), {})
            answer = int(whole.answer[row])
            answers[answer] = answers.get(answer, 0) + 1
        firsts: dict[int, list[int]] = {}
        for row in rows[np.isin(whole.question[rows], list(disputed))].tolist():
            firsts.setdefault(int(whole.question[row]), []).append(row)
        for question, found in firsts.items():
            majority = _majority(votes[question])
            for row in found:
                answer = int(whole.answer[row])
                other = next(r for r in found if int(whole.answer[r]) != answer)
                yield Hit(row, "different answers", other, fixed=answer != majority)


def num_disputed(whole: Whole, heldout: bool) -> int:
    """Return the number of questions of one side whose kept rows have different answers."""
    rows = whole.kept(heldout, kinds=("answer", "label", "preference"))
    claims = np.unique(np.stack([whole.question[rows], whole.answer[rows]], axis=1), axis=0)
    _, num_answers = np.unique(claims[:, 0], return_counts=True)
    return int((num_answers > 1).sum())


def _majority(votes: dict[int, int]) -> int | None:
    """Return the answer that more rows give than all others together."""
    answer = max(votes, key=lambda key: votes[key])
    return answer if 2 * votes[answer] > sum(votes.values()) else None


CHECK = Check(
    "contradictions",
    "rows whose question has different answers",
    compare=compare_contradictions,
    advice="Try: data.checks.contradictions: fix, which keeps the answer of the majority.",
)
