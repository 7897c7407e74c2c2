"""A judge compares answers of a trained model with those of its base.

For methods whose rows have no expected answer: the evaluations of other methods hold the answers
already, and their comparison asks the judge.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from training.config import EvaluationConfig, JudgeConfig
from training.data.row import Row
from training.evaluation.answerer import Question
from training.evaluation.kept import Kept, ask_model
from training.evaluation.local import local_answerer
from training.evaluation.metrics.judge import judge_pairs, win_rate
from training.evaluation.tool_calls import answer_shown
from tuneline.core.artifact import Artifact
from tuneline.models.source import ModelSource
from tuneline.models.template import TemplateSettings

ANSWERS_FILE = "answers.jsonl"


def judge_answers(
    config: EvaluationConfig,
    judge: JudgeConfig,
    rows: Sequence[Row],
    settings: TemplateSettings,
    base: ModelSource,
    trained: Artifact,
    folder: Path,
    kept: Kept,
) -> dict[str, Any]:
    """Return the trained model's win rate over its base, and write both answers to each prompt.

    Both models answer the first `judge.num_rows` distinct prompts greedily. Answers and judgements
    that are kept are not asked for again.

    Raises:
        ConfigError: The judge's URL or key cannot be used.
        ServerError: A request to the judge failed.
    """
    prompts = {json.dumps([row.prompt, row.tools]): row for row in rows}
    questions = [Question(row.prompt, row.tools) for row in prompts.values()][: judge.num_rows]
    texts = {
        who: _answers(config, questions, settings, base, adapter, kept)
        for who, adapter in (("base", None), ("tuned", trained))
    }
    asked = [list(question.messages) for question in questions]
    values, counts = judge_pairs(
        judge, list(zip(asked, texts["tuned"], texts["base"], strict=True)), kept
    )
    lines = [
        {"prompt": prompt, "base": base_text, "tuned": tuned_text, "judge": value}
        for prompt, base_text, tuned_text, value in zip(
            asked, texts["base"], texts["tuned"], values, strict=True
        )
    ]
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    (folder / ANSWERS_FILE).write_text(text, encoding="utf-8")
    return win_rate(values, counts)


def _answers(
    config: EvaluationConfig,
    questions: Sequence[Question],
    settings: TemplateSettings,
    base: ModelSource,
    adapter: Artifact | None,
    kept: Kept,
) -> list[str]:
    """Return one model's answers. The model leaves memory before the next one is loaded."""
    answerer = local_answerer(base, adapter, batch_size=config.batch_size, settings=settings)
    replies = ask_model(answerer, questions, config.max_new_tokens, kept)
    return [answer_shown(reply.text, reply.tool_calls) for reply in replies]
