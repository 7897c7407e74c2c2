"""Write an `evaluation-report`: base against tuned, the page of mismatches, confusion matrices."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from training.config import EvaluationConfig, JudgeConfig
from training.evaluation.evaluate import PAGE_FILE, read_predictions
from training.evaluation.kept import Kept, kept_answers
from training.evaluation.metrics.classes import class_targets, score_classes
from training.evaluation.metrics.judge import Pair, judge_pairs, win_rate
from training.evaluation.prediction import Prediction
from training.evaluation.report.comparison import compare_predictions
from training.evaluation.report.confusion_plot import draw_confusions
from training.evaluation.report.page import mismatch_page
from training.evaluation.tool_calls import answer_shown
from tuneline.core.artifact import Artifact, new_artifact, open_artifact

COMPARISON_FILE = "comparison.json"
PLOT_FILE = "confusion.png"


def report_evaluations(
    config: EvaluationConfig, base: Artifact, tuned: Artifact, out: Path
) -> Artifact:
    """Compare two evaluations of the same rows.

    With a judge, the first `judge.num_rows` answers of both are also compared with one another.

    Raises:
        ArtifactError: `out` exists, or the two are about different rows.
        ServerError: A request to the judge failed.
    """
    inputs = [base.as_input("base"), tuned.as_input("tuned")]
    recorded = {"fields": config.fields}
    with (
        kept_answers(out) as kept,
        new_artifact(out, "evaluation-report", config=recorded, inputs=inputs) as draft,
    ):
        answers = {"base": read_predictions(base), "tuned": read_predictions(tuned)}
        comparison = compare_predictions(answers["base"], answers["tuned"])
        text = comparison.model_dump_json(indent=2) + "\n"
        (draft.dir / COMPARISON_FILE).write_text(text, encoding="utf-8")
        page = mismatch_page("Base and tuned model on the held-out rows", answers, config)
        (draft.dir / PAGE_FILE).write_text(page, encoding="utf-8")
        tables = _confusions(answers, config)
        if tables:
            draw_confusions(tables, draft.dir / PLOT_FILE)
        draft.metrics.update(comparison.model_dump(mode="json"))
        if config.judge is not None:
            draft.metrics["judge"] = _judge(config.judge, answers["base"], answers["tuned"], kept)
    return open_artifact(out, kind="evaluation-report")


def _confusions(
    answers: dict[str, list[Prediction]], config: EvaluationConfig
) -> dict[str, dict[str, Any]]:
    """Return the confusion matrices of the last model, by the name of their target."""
    predictions = answers["tuned"]
    if not class_targets([prediction.expected for prediction in predictions], config):
        return {}
    details = score_classes(predictions, config).details
    return {f"{name} (tuned model)": table["confusion"] for name, table in details.items()}


def _judge(
    config: JudgeConfig, base: Sequence[Prediction], tuned: Sequence[Prediction], kept: Kept
) -> dict[str, Any]:
    """Return the tuned model's win rate over the base."""
    pairs: list[Pair] = [
        (b.prompt, answer_shown(b.answer, b.tool_calls), answer_shown(a.answer, a.tool_calls))
        for a, b in list(zip(base, tuned, strict=True))[: config.num_rows]
    ]
    return win_rate(*judge_pairs(config, pairs, kept))
