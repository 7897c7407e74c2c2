"""An embedding model is released for its ranks, and not for a summary of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tuneline.core.artifact import new_artifact, open_artifact
from tuneline.core.ranking import compare_ranks
from tuneline.core.release import Outcome
from tuneline.models.source import resolve_model
from tuneline.pipeline.run_config import load_run
from tuneline.pipeline.stage import PARITY_SERVED, RETRIEVAL
from tuneline.pipeline.stages import stages
from tuneline.release.figures import figures_of
from tuneline.release.gates.evaluation import judge_evaluation
from tuneline.release.gates.parity import judge_forms
from tuneline.release.proofs import Proofs

ROUTES = {"embedding": "embeddings", "reranker": "score"}
FACTS = {"num_passages": 80, "recipe": "lasttoken pooling, normalized", "dtype": "float32"}


def _proofs(
    folder: Path, rows: list[dict[str, Any]], method: str = "embedding", **changes: Any
) -> Proofs:
    (folder / "queries.jsonl").write_text("{}\n")
    (folder / "run.yaml").write_text(
        "name: queries\nbase_model: tiny-base\ndata: {path: queries.jsonl}\n"
        f"training: {{method: {{type: {method}}}}}\nserving: {{routes: [{ROUTES[method]}]}}\n"
    )
    run = load_run(folder / "run.yaml")
    found = compare_ranks([row["ranks"] for row in rows], [row["base_ranks"] for row in rows])
    summary = {**found, **FACTS, **changes}
    with new_artifact(folder / "out", "retrieval", config={}, inputs=[]) as draft:
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (draft.dir / "retrieval.jsonl").write_text(lines)
        (draft.dir / "retrieval.json").write_text(json.dumps(summary))
        draft.metrics.update(summary)
    made = {RETRIEVAL: open_artifact(folder / "out")}
    return Proofs(run, resolve_model("tiny-base"), stages(run), made)


def _rows(tuned: int, base: int, number: int = 40) -> list[dict[str, Any]]:
    return [{"line": at + 1, "ranks": [tuned], "base_ranks": [base]} for at in range(number)]


@pytest.mark.parametrize(
    ("tuned", "base", "number", "outcome", "said"),
    [
        (1, 3, 40, Outcome.PASSED, "The tuned model is better: 0.5 → 1, difference +0.5 to +0.5"),
        (3, 3, 40, Outcome.FAILED, "The tuned model is not shown to be better"),
        (3, 1, 40, Outcome.FAILED, "not shown to be better: 1 → 0.5"),
        (1, 3, 5, Outcome.FAILED, "INCONCLUSIVE: an interval needs at least 20 queries"),
    ],
)
def test_queries_are_judged_by_their_ranks(
    tmp_path: Path, tuned: int, base: int, number: int, outcome: Outcome, said: str
) -> None:
    found = judge_evaluation(_proofs(tmp_path, _rows(tuned, base, number)))
    assert found.outcome is outcome, found.words
    assert said in found.words


@pytest.mark.parametrize("changes", [{"ndcg": 0.9}, {"ndcg_difference_interval": [0.1]}])
def test_a_summary_that_the_ranks_contradict_is_refused(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    found = judge_evaluation(_proofs(tmp_path, _rows(1, 3), **changes))
    assert (found.outcome, found.observed) == (Outcome.FAILED, "contradiction")
    assert next(iter(changes)) in found.words


@pytest.mark.parametrize(
    ("method", "said"), [("embedding", "gives vectors"), ("reranker", "A reranker gives scores")]
)
def test_the_release_of_a_model_that_ranks_has_its_figures(
    tmp_path: Path, method: str, said: str
) -> None:
    proofs = _proofs(tmp_path, _rows(1, 3), method)
    figures = {one.name: one.value for one in figures_of(proofs)}
    assert figures["evaluation.retrieval.ndcg"] == 1.0
    assert figures["evaluation.retrieval.mrr_base"] == pytest.approx(1 / 3)
    assert PARITY_SERVED in {stage.name for stage in proofs.stages}
    found = judge_forms(proofs)
    assert found.outcome is Outcome.NOT_ASKED and said in found.words
    assert proofs.run.config.loadtest.workload.route == {"reranker": "rerank"}.get(
        method, "embeddings"
    )
