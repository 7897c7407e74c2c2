"""The scores of a reward model: what a server's answer and a stored proof must hold."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from serving.rewards import REWARDS_FILE, _score_of, compare_rewards, recheck_rewards
from tuneline.core.artifact import Artifact, new_artifact, open_artifact
from tuneline.core.errors import ArtifactError, ServerError


@pytest.mark.parametrize(
    ("entry", "problem"),
    [
        ({"data": [0.25]}, None),
        ({"probs": [0.25]}, None),
        ({"data": [0.25, 0.5]}, "gives no score of a reward model"),
        ({"data": [None]}, "gives no score of a reward model"),
        ({"data": [float("nan")]}, "gives no finite score"),
    ],
)
def test_an_answer_has_one_finite_score(entry: dict[str, Any], problem: str | None) -> None:
    if problem is None:
        assert _score_of({"data": [entry]}, "http://server/pooling") == 0.25
        return
    with pytest.raises(ServerError, match=f"^http://server/pooling: {problem}"):
        _score_of({"data": [entry]}, "http://server/pooling")


def made(folder: Path, kind: str, name: str, text: str) -> Artifact:
    with new_artifact(folder, kind, config={}, inputs=[]) as draft:
        (draft.dir / name).write_text(text)
    return open_artifact(folder)


def test_a_proof_with_a_score_that_is_not_a_number_is_refused(tmp_path: Path) -> None:
    """`max` passes over a NaN that is not its first value: the figures would be those of a PASS."""
    rows = [{"rewards": [1.0, 0.0], "token_ids": [[1], [2]]}]
    text = "".join(f"{json.dumps(row)}\n" for row in rows)
    preferences = made(tmp_path / "preferences", "preferences", "preferences.jsonl", text)
    figures = compare_rewards([1.0, 0.0], [1.0, 0.0], 2e-3)

    def proof(name: str, scores: list[float]) -> Artifact:
        stored = json.dumps({**figures, "rewards": scores})
        return made(tmp_path / name, "reward-parity", REWARDS_FILE, stored)

    assert recheck_rewards(proof("whole", [1.0, 0.0]), preferences) == []
    with pytest.raises(ArtifactError, match="does not hold the scores"):
        recheck_rewards(proof("broken", [1.0, float("nan")]), preferences)
