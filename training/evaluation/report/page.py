"""One HTML file of answers next to the expected ones: no network, no build step."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from training.config import EvaluationConfig
from training.evaluation.metrics.classes import class_targets, labels_of, score_classes
from training.evaluation.prediction import Prediction
from tuneline.core.messages import content_of
from tuneline.core.page.to_html import script_page

MAX_ROWS = 2000
"""Rows on a page, those with a wrong answer first; a phone still scrolls them."""


def mismatch_page(
    title: str, answers: Mapping[str, Sequence[Prediction]], config: EvaluationConfig
) -> str:
    """Return a page with a column for each model, by its label.

    The page filters by who is wrong, by field and by class, and searches. Its state is in the
    URL's fragment, so that a view can be linked: `#show=all&field=Category&class=Email`.
    """
    columns = list(answers.values())
    expected = [prediction.expected for prediction in columns[0]]
    targets = class_targets(expected, config)
    rows = [_row(index, row, config) for index, row in enumerate(zip(*columns, strict=True))]
    rows.sort(key=lambda row: (all(row["right"]), row["number"]))
    data = {
        "title": title,
        "labels": list(answers),
        "num_rows": len(rows),
        "num_right": [sum(p.correct for p in column) for column in columns],
        "targets": targets,
        "confusion": [_confusions(column, config) if targets else {} for column in columns],
        "rows": rows[:MAX_ROWS],
    }
    here = Path(__file__).parent
    return script_page(title, here / "page.html", data, here / "page.js", here / "page.css")


def _row(index: int, predictions: Sequence[Prediction], config: EvaluationConfig) -> dict[str, Any]:
    first = predictions[0]
    return {
        "number": index + 1,
        "prompt": [
            {"role": message["role"], "content": content_of(message)} for message in first.prompt
        ],
        "expected": _shown(first.expected, first.expected_tool_calls),
        "answers": [_shown(p.answer, p.tool_calls) for p in predictions],
        "right": [p.correct for p in predictions],
        "fields": labels_of(first.expected, config),
        "given": [labels_of(p.answer, config) for p in predictions],
    }


def _shown(text: str, calls: Sequence[dict[str, Any]]) -> str:
    lines = [
        f"{call['name']}({json.dumps(call['arguments'], ensure_ascii=False)})" for call in calls
    ]
    return "\n".join([*([text] if text or not lines else []), *lines])


def _confusions(predictions: Sequence[Prediction], config: EvaluationConfig) -> dict[str, Any]:
    tables = score_classes(predictions, config).details
    return {name: table["confusion"] for name, table in tables.items()}
