"""A preference method is released for what its held-out rows say, and not for a summary of them."""

import json
from pathlib import Path
from typing import Any

import pytest

from training.evaluation.preferences import preference_figures
from tuneline.core.artifact import new_artifact, open_artifact
from tuneline.core.release import Outcome
from tuneline.core.statistics import bootstrap_interval
from tuneline.models.source import resolve_model
from tuneline.pipeline.run_config import load_run
from tuneline.pipeline.stage import EVALUATION_SERVED, EVALUATION_TUNED, PREFERENCES
from tuneline.pipeline.stages import stages
from tuneline.release.figures import figures_of
from tuneline.release.gates.evaluation import judge_evaluation, judge_served_evaluation
from tuneline.release.gates.finding import Finding
from tuneline.release.proofs import Proofs
from tuneline.release.rows import Rows, compare_rows
from tuneline.report.facts import Facts
from tuneline.report.page import report_document


def proofs_of(
    folder: Path, rows: list[dict[str, Any]], summary: dict[str, Any], *options: str
) -> Proofs:
    (folder / "pairs.jsonl").write_text("{}\n")
    (folder / "run.yaml").write_text(
        "name: pairs\nbase_model: tiny-base\ndata: {path: pairs.jsonl}\n"
        "training: {method: {type: dpo}}\n"
    )
    run = load_run(folder / "run.yaml", options)
    with new_artifact(folder / "out", "preferences", config={}, inputs=[]) as draft:
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (draft.dir / "preferences.jsonl").write_text(lines)
        (draft.dir / "preferences.json").write_text(json.dumps(summary))
    made = {PREFERENCES: open_artifact(folder / "out")}
    return Proofs(run, resolve_model("tiny-base"), stages(run), made)


def judge(
    folder: Path, rows: list[dict[str, Any]], summary: dict[str, Any], *options: str
) -> Finding:
    return judge_evaluation(proofs_of(folder, rows, summary, *options))


def pairs(num_right: int, num_rows: int) -> list[dict[str, Any]]:
    return [{"rewards": [1.0, 0.0] if at < num_right else [0.0, 1.0]} for at in range(num_rows)]


def answers(rewards: list[float]) -> list[dict[str, Any]]:
    return [{"reward": reward, "base_reward": 0.5} for reward in rewards]


@pytest.mark.parametrize(("num_right", "is_better"), [(40, True), (20, False), (0, False)])
def test_pairs_are_judged_by_their_rewards(tmp_path: Path, num_right: int, is_better: bool) -> None:
    rows = pairs(num_right, 40)
    found = judge(tmp_path, rows, preference_figures([tuple(row["rewards"]) for row in rows]))
    assert found.outcome is (Outcome.PASSED if is_better else Outcome.FAILED), found.words


def test_labels_are_paired_in_order(tmp_path: Path) -> None:
    rows = [{"label": at % 2 == 0, "rewards": [1.0 - at % 2]} for at in range(80)]
    found = judge(tmp_path, rows, preference_figures([(1.0, 0.0)] * 40))
    assert found.outcome is Outcome.PASSED, found.words


def test_a_summary_that_its_rows_contradict_is_refused(tmp_path: Path) -> None:
    found = judge(tmp_path, pairs(20, 40), preference_figures([(1.0, 0.0)] * 40))
    assert (found.outcome, found.observed) == (Outcome.FAILED, "contradiction")
    assert "accuracy_interval is" in found.words


@pytest.mark.parametrize(("num_rows", "outcome"), [(40, Outcome.PASSED), (1, Outcome.FAILED)])
def test_rewards_need_rows_for_an_interval(tmp_path: Path, num_rows: int, outcome: Outcome) -> None:
    rows = answers([1.0] * num_rows)
    interval = bootstrap_interval([0.5] * num_rows)
    found = judge(tmp_path, rows, {"reward_difference_interval": interval})
    assert found.outcome is outcome, found.words
    assert ("at least 20 rows are needed" in found.words) is (num_rows == 1)


def test_a_named_metric_is_judged_instead(tmp_path: Path) -> None:
    found = judge(tmp_path, [], {}, "release.metric=exact_match")
    assert found.required.startswith("exact_match better")


@pytest.mark.parametrize("name", ["accuracy", "reward_difference"])
@pytest.mark.parametrize(
    ("summary", "expected"),
    [
        (
            {**preference_figures([(1.0, 0.0)] * 40), "likelier_base": 0.75, "likelier": 0.825},
            {"accuracy": 1.0, "margin": 1.0, "likelier_base": 0.75, "likelier": 0.825},
        ),
        (
            {"reward_base": 0.5, "reward": 1.0, "reward_difference": 0.5,
             "reward_difference_interval": [0.4, 0.6]},
            {"reward_base": 0.5, "reward": 1.0, "reward_difference": 0.5},
        ),
    ],
    ids=["pairs", "rewards"],
)  # fmt: skip
def test_a_release_has_the_figures_of_the_preferences(
    tmp_path: Path, summary: dict[str, Any], expected: dict[str, float], name: str
) -> None:
    found = {figure.name: figure for figure in figures_of(proofs_of(tmp_path, [], summary))}
    assert {name: figure.value for name, figure in found.items()} == {
        f"evaluation.preferences.{name}": value for name, value in expected.items()
    }
    if name in expected:
        interval = found[f"evaluation.preferences.{name}"].interval
        assert list(interval or ()) == list(summary[f"{name}_interval"])


@pytest.mark.parametrize(
    ("metrics", "options", "expected"),
    [
        (["exact_match", "rouge_l"], (), "rouge_l"),
        (["exact_match"], (), "exact_match"),
        (["exact_match", "rouge_l"], ("training.method={type: sft}",), "exact_match"),
        (["exact_match", "rouge_l"], ("release.metric=chrf",), "chrf"),
    ],
)
def test_answers_of_a_preference_model_are_compared_by_their_words(
    tmp_path: Path, metrics: list[str], options: tuple[str, ...], expected: str
) -> None:
    with new_artifact(tmp_path / "tuned", "evaluation", config={}, inputs=[]) as draft:
        scores: dict[str, dict[str, Any]] = {"metrics": {name: {} for name in metrics}}
        (draft.dir / "evaluation.json").write_text(json.dumps(scores))
    proofs = proofs_of(tmp_path, [], {}, *options)
    proofs.made[EVALUATION_TUNED] = open_artifact(tmp_path / "tuned")
    assert proofs.metric == expected


@pytest.mark.parametrize(("num_right", "is_shown"), [(0, False), (5, False), (6, True)])
def test_a_metric_that_cannot_fall_rules_no_drop_out(num_right: int, is_shown: bool) -> None:
    values = {str(at): float(at < num_right) for at in range(100)}
    rows = Rows(metric="exact_match", higher_is_better=True, evaluation="x", values=values)
    found = compare_rows(rows, rows)
    assert found is not None
    assert found.rules_out(0.05) is is_shown
    assert ("a drop of more than 0.05 is not possible" in found.inconclusive(0.05)) is not is_shown


@pytest.mark.parametrize(("num_rows", "is_better"), [(2, False), (5, False), (6, True)])
def test_a_handful_of_right_answers_shows_no_gain(num_rows: int, is_better: bool) -> None:
    def rows(value: float) -> Rows:
        values = {str(at): value for at in range(num_rows)}
        return Rows(metric="exact_match", higher_is_better=True, evaluation="x", values=values)

    # Newcombe's interval excludes zero from two rows on; McNemar's p is 0.5 there.
    found = compare_rows(rows(0.0), rows(1.0))
    assert found is not None
    assert (found.low > 0) is is_better


@pytest.mark.parametrize(
    ("metrics", "tile"),
    [
        ({"num_pairs": 40, "accuracy": 0.975}, ("better answer preferred", "97.5%", "of 40 pairs")),
        ({"reward_base": 0.5, "reward": 1.25}, ("reward", "1.25", "base 0.500")),
    ],
)
def test_a_report_begins_with_the_preferences(
    tmp_path: Path, metrics: dict[str, Any], tile: tuple[str, str, str]
) -> None:
    with new_artifact(tmp_path / "compared", PREFERENCES, config={}, inputs=[]) as draft:
        (draft.dir / "preferences.jsonl").write_text("")
        draft.metrics.update(metrics)
    facts = Facts(
        "pairs", "tuneline up", None, {PREFERENCES: open_artifact(tmp_path / "compared")}, {}
    )
    (found,) = report_document(facts).tiles
    assert (found.title, found.value, found.note) == tile


@pytest.mark.parametrize("method", ["dpo", "sft"])
def test_a_metric_that_cannot_fall_gets_a_hint_of_one_that_can(tmp_path: Path, method: str) -> None:
    proofs = proofs_of(tmp_path, [], {}, f"training.method={{type: {method}}}")
    scores = {"metrics": {"exact_match": {"higher_is_better": True}}}
    asked = [
        {"prompt": [{"role": "user", "content": str(at)}], "expected": "x"} for at in range(99)
    ]
    for stage in (EVALUATION_TUNED, EVALUATION_SERVED):
        with new_artifact(tmp_path / stage, "evaluation", config={}, inputs=[]) as draft:
            (draft.dir / "evaluation.json").write_text(json.dumps(scores))
            lines = (json.dumps({**row, "scores": {"exact_match": 0.0}}) for row in asked)
            (draft.dir / "predictions.jsonl").write_text("\n".join(lines))
        proofs.made[stage] = open_artifact(tmp_path / stage)
    found = judge_served_evaluation(proofs)
    assert found.outcome is Outcome.FAILED and "rouge_l can" in found.words
    assert "--set 'evaluation.metrics=[exact_match,rouge_l]'" in found.hint
    assert ("release.metric: rouge_l" in found.hint) is (method == "sft")
